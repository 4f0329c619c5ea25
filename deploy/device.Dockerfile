# A device that runs in a container: umbel run. From the repository's root:
#   docker build -f deploy/device.Dockerfile -t umbel-device .
# Its identity and its data are in the volume /var/lib/umbel, the only place that is written to besides /tmp.
FROM debian:12.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY proto proto
COPY client client
RUN python3 -m venv /opt/umbel && /opt/umbel/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[learn]'

FROM debian:12.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 ca-certificates && rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 10002 umbel && useradd --system --uid 10002 --gid 10002 --home-dir /var/lib/umbel --shell /usr/sbin/nologin umbel && install -d -o 10002 -g 10002 -m 700 /var/lib/umbel
COPY --from=build /opt/umbel /opt/umbel
ENV PATH=/opt/umbel/bin:/usr/bin:/bin UMBEL_HOME=/var/lib/umbel/device HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER 10002:10002
VOLUME /var/lib/umbel
STOPSIGNAL SIGTERM
ENTRYPOINT ["umbel"]
CMD ["run"]
