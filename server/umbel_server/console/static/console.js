// What makes the console live: a screen that looks again when something changed, charts, and small comforts.
// Everything that can be read can be read without it.
"use strict";
(() => {
  const REFRESH = "X-Umbel-Refresh";
  const PERIODS = { "5s": 5, "30s": 30, "1m": 60 };
  const POLL_S = 30;
  let looking = false, looked = Date.now(), stream = null, pending = false;

  const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
  const screen = () => document.getElementById("screen");
  const csrf = () => meta("umbel-csrf");

  // ---- Looking again -------------------------------------------------------------------------------------------
  const busy = () => {
    const at = document.activeElement;
    if (at && at.matches("input:not([type=checkbox], [type=radio]), textarea, select") && screen()?.contains(at)) return true;
    return Boolean(screen()?.querySelector(".pick[open], input[type=checkbox]:checked, form[data-changed]"));
  };

  async function look() {
    const main = screen();
    if (!main || main.dataset.live === undefined || looking) return;
    if (document.hidden || busy()) { pending = true; return; }
    pending = false;
    looking = true;
    const open = [...document.querySelectorAll("#screen details[open][id]")].map((each) => each.id);
    const focus = document.activeElement?.id;
    try {
      await htmx.ajax("GET", location.pathname + location.search, {
        target: "#screen", swap: "outerHTML", headers: { [REFRESH]: "1" },
      });
      for (const id of open) { const again = document.getElementById(id); if (again) again.open = true; }
      if (focus && document.activeElement === document.body) document.getElementById(focus)?.focus({ preventScroll: true });
    } finally {
      looking = false;
    }
  }

  function tick() {
    const main = screen();
    if (!main || main.dataset.live === undefined) return;
    const since = Math.round((Date.now() - looked) / 1000);
    const shown = main.querySelector("[data-updated]");
    if (shown) shown.textContent = since < 2 ? "updated now" : `updated ${since} s ago`;
    const period = PERIODS[main.dataset.refresh];
    if (period && since >= period) look();
    else if (!period && main.dataset.refresh !== "off" && (pending || (!stream && since >= POLL_S))) look();
  }

  // Told by the server when something changed; without that, it asks every half minute. Hidden tabs do neither.
  function listen() {
    stream?.close();
    stream = null;
    const main = screen();
    if (!main || main.dataset.live === undefined || main.dataset.refresh || document.hidden) return;
    const from = new EventSource(`/live?about=${encodeURIComponent(main.dataset.live)}&seen=${main.dataset.sign}`);
    from.addEventListener("open", () => { stream = from; });
    from.addEventListener("changed", look);
    from.addEventListener("error", () => { if (from.readyState === EventSource.CLOSED) stream = null; });
  }

  function trouble(sentence) {
    const place = document.getElementById("trouble");
    if (!place) return;
    place.textContent = sentence;
    place.hidden = !sentence;
  }

  document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden && pending) look(); });
  document.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-Umbel-CSRF"] = csrf(); });
  document.addEventListener("htmx:afterSwap", () => { looked = Date.now(); trouble(""); draw(); });
  document.addEventListener("htmx:sendError", () => trouble("The console does not answer: what you see is not of now."));
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status !== 401) trouble(`The console answered with ${event.detail.xhr.status}: what you see is not of now.`);
  });

  // ---- Charts ----------------------------------------------------------------------------------------------------
  let charts = null;
  const load = (source) => new Promise((ready, failed) => {
    const script = document.createElement("script");
    Object.assign(script, { src: source, onload: ready, onerror: failed });
    document.head.append(script);
  });

  async function draw() {
    const places = [...document.querySelectorAll("[data-chart]:not([data-drawn])")];
    if (!places.length) return;
    const sources = meta("umbel-charts").split(" ").filter(Boolean);
    charts ??= sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
    for (const place of places) place.dataset.drawn = "";
    try {
      await charts;
      for (const place of places) window.umbelCharts.show(place);
    } catch {
      for (const place of places) place.textContent = "The chart could not be loaded; its numbers are below.";
    }
  }

  // ---- Comforts --------------------------------------------------------------------------------------------------
  document.addEventListener("click", async (event) => {
    const copy = event.target.closest?.("[data-copy]");
    if (copy) {
      const before = copy.textContent;
      try {
        await navigator.clipboard.writeText(copy.dataset.copy);
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "Not copied: the browser forbids it";
      }
      setTimeout(() => { copy.textContent = before; }, 2000);
    }
    const all = event.target.closest?.("[data-check-all]");
    if (all) {
      for (const box of document.querySelectorAll(`input[type=checkbox][name="${CSS.escape(all.dataset.checkAll)}"]`)) box.checked = all.checked;
    }
    for (const open of document.querySelectorAll(".pick[open]")) if (!open.contains(event.target)) open.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      for (const open of document.querySelectorAll(".pick[open]")) { open.open = false; open.querySelector("summary").focus(); }
    }
    if (event.key === "/" && !event.target.closest?.("input, textarea, select")) {
      const search = document.querySelector("input[type=search]");
      if (search) { event.preventDefault(); search.focus(); }
    }
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches?.("[type=checkbox], [type=radio]")) return;  // Ticked or not is seen, above.
    event.target.closest?.("#screen form:not([method=get])")?.setAttribute("data-changed", "");
  });
  document.addEventListener("change", (event) => { if (event.target.matches?.("[data-submit]")) event.target.form.requestSubmit(); });
  // A file that is chosen is read into the field it is for: it goes with the form, and is seen before.
  document.addEventListener("change", async (event) => {
    const into = event.target.dataset?.into && document.getElementById(event.target.dataset.into);
    const file = into && event.target.files[0];
    if (!file) return;
    if (file.size > into.maxLength) trouble(`${file.name} is longer than ${into.maxLength} characters.`);
    else into.value = await file.text();
  });
  // A form that was sent is not sent again by a second click.
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post") return;
    if (event.target.dataset.sent) { event.preventDefault(); return; }
    event.target.dataset.sent = "1";
    keep(event.target);
  });
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  // ---- What somebody typed into a form that was sent after the session had ended ---------------------------------
  // It stays in this tab until the next page: only one that comes after signing in again, as the same, takes it back.
  const KEPT = "umbel-typed", KEPT_MS = 30 * 60 * 1000, SIGNED_IN = ["/sign-in", "/api/v1/oidc/callback"];
  const me = () => document.querySelector(".account p")?.firstChild?.textContent.trim() ?? "";
  const posts = () => [...document.querySelectorAll("#screen form[method=post]")];
  const typed = (form) => [...form.elements].filter((each) => each.name && !["hidden", "password", "file", "submit", "button"].includes(each.type));

  function keep(form) {
    const at = posts().indexOf(form);
    const fields = typed(form).map((each) => [each.name, each.value, Boolean(each.checked)]);
    const told = { at, fields, action: form.getAttribute("action"), here: location.pathname + location.search, who: me(), since: Date.now() };
    try {
      if (at < 0) sessionStorage.removeItem(KEPT); else sessionStorage.setItem(KEPT, JSON.stringify(told));
    } catch { /* There is no room, or none is allowed: it is typed again. */ }
  }

  function giveBack() {
    let told = null;
    try {
      told = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
      sessionStorage.removeItem(KEPT);
    } catch { return; }
    const from = document.referrer && new URL(document.referrer);
    if (!told || !from || from.origin !== location.origin || !SIGNED_IN.includes(from.pathname)) return;
    if (told.here !== location.pathname + location.search || told.who !== me() || Date.now() - told.since > KEPT_MS) return;
    const form = posts()[told.at];
    if (!form || form.getAttribute("action") !== told.action) return;
    typed(form).forEach((each, place) => {
      const [name, value, checked] = told.fields[place] ?? [];
      if (name !== each.name) return;
      if (!["checkbox", "radio"].includes(each.type)) each.value = value;
      else if (value === each.value) each.checked = checked;
    });
    form.dataset.changed = "";
  }

  // ---- Begin -----------------------------------------------------------------------------------------------------
  giveBack();
  setInterval(tick, 1000);
  listen();
  draw();
})();
