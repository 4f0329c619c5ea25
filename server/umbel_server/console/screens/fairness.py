"""Screen "Fairness": which cohorts a model treats otherwise than the others, and who lives with that until when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing
from umbel_server.api.service import Service, ServiceOf, StoreOf
from umbel_server.api.texts import Named
from umbel_server.console import confirm
from umbel_server.console.confirm import Deed
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.seen.fairness import FIGURES, Treated, gaps, lines_of, treated, trend
from umbel_server.console.seen.watched import Made, Watched, WatchedOf, made
from umbel_server.console.session import ActorOf
from umbel_server.monitor.fairness import SELECTION, Fairness
from umbel_server.monitor.looks import label_of_model
from umbel_server.store.store import Store
from umbel_server.store.waivers import MAX_DAYS, Gap, Waiver

router = APIRouter(route_class=ScreenRoute)

COLUMNS = (
    "cohort", "figure", "here", "others", "gap", "low", "high", "days_before", "finding", "hidden", "waived_by",
    "waived_until_s",
)  # fmt: skip
_READ = [may(Permission.TELEMETRY_READ)]
_WAIVE = [may(Permission.REGISTRY_APPROVE)]
Label = Annotated[str, Query(max_length=200)]
Metric = Annotated[str, Query(max_length=40)]
Cohort = Annotated[str, Query(max_length=63)]


@router.get("/fairness", dependencies=_READ)
def show_fairness(
    request: Request, service: ServiceOf, watched: WatchedOf, label: Label = "", metric: Metric = SELECTION
) -> Response:
    """Show the gaps between cohorts, and who lives with which."""
    wanted = request.query_params.get("format", "")
    found = _made(service, watched, label, patient=bool(wanted)) if watched.model else Made(None)
    store, seen = service.store, found.value
    now: Fairness | None = None if seen is None else seen.now(store, watched)
    file = export(request, "fairness", COLUMNS, _rows(seen, now))
    if file is not None:
        return file
    return page(
        request,
        "fairness.html",
        window=watched.window,
        live="fairness",
        watched=watched,
        found=found,
        seen=seen,
        now=now,
        lines=() if seen is None or now is None else tuple(lines_of(now, seen.before)),
        metric=metric if metric in FIGURES else SELECTION,
        figures_of=FIGURES,
        label="" if now is None else str(now.label),
        waivers=store.waivers.of(watched.model) if watched.model else (),
    )


@router.get("/fairness/gaps.json", dependencies=_READ)
def get_gaps(
    service: ServiceOf, watched: WatchedOf, label: Label = "", metric: Metric = SELECTION
) -> dict[str, Any]:
    """Give the chart of a figure's gaps by cohort."""
    found = _made(service, watched, label, patient=True)
    if found.value is None:
        return {"kind": "bar", "empty": _why(found)}
    return gaps(found.value.now(service.store, watched), metric)


@router.get("/fairness/trend.json", dependencies=_READ)
def get_trend(
    service: ServiceOf, watched: WatchedOf, label: Label = "", metric: Metric = SELECTION
) -> dict[str, Any]:
    """Give the chart of a figure's gaps day by day."""
    found = _made(service, watched, label, patient=True)
    return trend(found.value, metric) if found.value is not None else {"kind": "line", "empty": _why(found)}


@router.get("/fairness/waive", dependencies=_WAIVE)
def ask_waiver(
    request: Request, model: Label = "", label: Label = "", cohort: Cohort = "", metric: Metric = SELECTION,
    version: Annotated[int | None, Query(ge=1, lt=1 << 31)] = None,
) -> Response:  # fmt: skip
    """Ask for how long and why somebody lives with a gap."""
    given = {
        "model": model,
        "label": label,
        "cohort": cohort,
        "metric": metric,
        "version": str(version or ""),
    }
    return _ask(request, given)


@router.post("/fairness/waive", dependencies=_WAIVE)
def waive(request: Request, service: ServiceOf, actor: ActorOf, form: FormOf) -> Response:
    """Put on record that somebody lives with a gap until a day."""
    names = ("model", "label", "cohort", "metric", "version", "days", "reason", "scope")
    given = {name: form.text(name) for name in names}
    try:
        version = int(given["version"]) if given["version"] and given["scope"] != "every" else None
        days = float(given["days"] or "nan")
    except ValueError:
        return _ask(request, given, problem="Nothing was done: give the days as a number.")
    try:
        label = label_of_model(service.fleet, service.store, given["model"], version, given["label"])
        gap = Gap(given["model"], version, label, given["cohort"], given["metric"])
        made_ = service.store.waivers.waive(gap, days=days, reason=given["reason"], actor=actor)
    except UmbelError as exc:
        return _ask(
            request, given, problem=f"Nothing was done: {exc}", conflict=isinstance(exc, RefusedError)
        )
    where = {"model": gap.model, "label": given["label"], "metric": gap.metric}
    if given["version"]:
        where["version"] = given["version"]
    return done(f"/fairness?{urlencode(where)}", f"{made_.id}: the {gap.words} is waived for {days:g} days.")


@router.get("/fairness/waivers/{name}/end", dependencies=_WAIVE)
def ask_end(request: Request, store: StoreOf, name: Named) -> Response:
    """Ask before a waiver ends."""
    return confirm.ask(request, _deed(_found(store, name)))


@router.post("/fairness/waivers/{name}/end", dependencies=_WAIVE)
def end(request: Request, store: StoreOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """End a waiver before its time."""
    waiver = _found(store, name)
    deed = _deed(waiver)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    try:
        store.waivers.end(name, reason=form.text(confirm.REASON), actor=actor)
    except RefusedError as exc:
        return confirm.conflict(request, deed, form, f"Nothing was done: {exc}")
    return done(_back(waiver), f"{name} is over: the {waiver.gap.words} is open again.")


def _made(service: Service, watched: Watched, label: str, *, patient: bool) -> Made:
    key = ("fairness", *watched.key, label)
    return made(service.fleet, service.store, key, treated, watched, label, patient=patient)


def _why(found: Made) -> str:
    return found.why or "It is still being computed: ask again in a moment."


def _ask(
    request: Request, given: Mapping[str, str], *, problem: str = "", conflict: bool = False
) -> Response:
    status = HTTPStatus.OK
    if problem:
        status = HTTPStatus.CONFLICT if conflict else HTTPStatus.UNPROCESSABLE_ENTITY
    values = {"days": "30", "reason": "", "scope": "this", **given}
    return page(
        request,
        "waive.html",
        title="Waive a gap",
        status=status,
        given=values,
        problem=problem,
        metrics=FIGURES,
        most=MAX_DAYS,
    )


def _found(store: Store, name: str) -> Waiver:
    try:
        return store.waivers.get(name)
    except UsageError:
        raise missing(f"waiver {name}") from None


def _deed(waiver: Waiver) -> Deed:
    return Deed(
        title=f"End waiver {waiver.id}",
        button="End the waiver",
        name="",
        devices=None,
        says=(
            f"{waiver.created_by} waived the {waiver.gap.words}, because: {waiver.reason}",
            "The gap is open again at once, for alerts too. The waiver stays on record.",
        ),
        back=_back(waiver),
    )


def _back(waiver: Waiver) -> str:
    of = waiver.gap
    where: dict[str, object] = {"model": of.model, "label": of.label, "metric": of.metric}
    if of.version is not None:
        where["version"] = of.version
    return f"/fairness?{urlencode(where)}"


def _rows(seen: Treated | None, now: Fairness | None) -> Iterator[tuple[object, ...]]:
    if seen is None or now is None:
        return
    for line, was in lines_of(now, seen.before):
        gap, before = line.gap, None if was is None else was.gap
        yield (
            line.cohort,
            line.metric,
            line.own,
            line.others,
            None if gap is None else gap.value,
            None if gap is None else gap.low,
            None if gap is None else gap.high,
            None if before is None else before.value,
            line.finding,
            line.hidden,
            None if line.waived is None else line.waived.by,
            None if line.waived is None else line.waived.expires_s,
        )
    for cohort in now.hidden_cohorts:
        yield (cohort, *(None,) * 7, False, True, None, None)
