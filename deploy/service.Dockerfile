# The service of a fleet: umbel serve. From the repository's root:
#   docker build -f deploy/service.Dockerfile -t umbel-service .
# The fleet's directory is the volume /var/lib/umbel, the only place that is written to besides /tmp.
FROM debian:12.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY proto proto
COPY client client
COPY server server
RUN python3 -m venv /opt/umbel && /opt/umbel/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[server]' ./server

FROM debian:12.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 ca-certificates && rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 10001 umbel && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/umbel --shell /usr/sbin/nologin umbel && install -d -o 10001 -g 10001 -m 700 /var/lib/umbel
COPY --from=build /opt/umbel /opt/umbel
ENV PATH=/opt/umbel/bin:/usr/bin:/bin UMBEL_FLEET=/var/lib/umbel/fleet HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME /var/lib/umbel
STOPSIGNAL SIGTERM
ENTRYPOINT ["umbel"]
CMD ["serve"]
