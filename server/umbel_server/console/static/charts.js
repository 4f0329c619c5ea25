// Our own small description of a chart, as an ECharts option: colors from the page's variables, texts never as HTML.
"use strict";
(() => {
  const shown = new Map();
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const palette = () => [1, 2, 3, 4, 5, 6].map((each) => color(`chart-${each}`));
  const FEW = 5, NARROW = 560;
  const TONES = { ok: "ok", warn: "warn", bad: "bad", accent: "accent", muted: "soft", info: "info" };
  const tone = (series, at) => (series.tone ? color(TONES[series.tone] ?? "accent") : palette()[at % 6]);

  function number(value, unit) {
    if (value === null || value === undefined || Number.isNaN(value)) return "no data";
    if (unit === "%") return `${(value * 100).toLocaleString("en", { maximumFractionDigits: 2 })} %`;
    const text = Math.abs(value) >= 1e-3 || value === 0
      ? value.toLocaleString("en", { maximumSignificantDigits: 4 }) : value.toExponential(2);
    return unit ? `${text} ${unit}` : text;
  }
  const short = (value, unit) => (unit === "%" ? number(value, unit)
    : Math.abs(value) >= 1e4 ? value.toLocaleString("en", { notation: "compact" }) : String(+value.toPrecision(6)));
  const moment = (seconds) => `${new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ")} UTC`;

  function axis(data, of, horizontal) {
    const line = { lineStyle: { color: color("line") } };
    const text = { color: color("soft"), fontSize: 11, hideOverlap: true };
    const kind = of.type ?? "value";
    const days = data.kind === "line" && of.values?.at(-1) % 86400 === 0;
    const made = {
      type: kind === "time" ? "time" : kind === "category" ? "category" : kind === "log" ? "log" : "value",
      name: of.name && of.unit && !["%", "B"].includes(of.unit) ? `${of.name}, ${of.unit}` : of.name ?? "", nameTextStyle: { color: color("soft"), fontSize: 11, align: horizontal ? "center" : "left" }, nameLocation: horizontal ? "middle" : "end",
      nameGap: horizontal ? 26 : 10, axisLine: line, axisTick: line, axisLabel: text,
      splitLine: { show: !horizontal, lineStyle: { color: color("line-soft") } },
      min: of.min, max: of.max, interval: of.interval, scale: true,
    };
    if (kind === "category") {
      Object.assign(made, { data: of.values.map(String), splitLine: { show: false } });
      // A few names are all shown, in as many lines as they need.
      if (horizontal && of.values.length <= FEW && data.width < NARROW) made.name = "";
      if (horizontal && of.values.length <= FEW) made.axisLabel = { ...text, interval: 0, overflow: "break", formatter: (name) => name.replaceAll("-", "-\u200b"), width: Math.max((data.width - 70) / of.values.length - 8, 40) };
    } else if (kind === "time") made.axisLabel = { ...text, showMaxLabel: days || undefined, formatter: { year: "{yyyy}", month: "{MM}-{dd}", day: "{MM}-{dd}" } };
    else made.axisLabel = { ...text, formatter: (value) => short(value, of.unit) };
    return made;
  }

  const points = (data, values) => data.x.type === "category" ? values
    : values.map((value, at) => [data.x.type === "time" ? data.x.values[at] * 1000 : data.x.values[at], value]);
  const place = (data, at) => (data.x.type === "time" ? at * 1000 : data.x.type === "category" ? String(at) : at);

  function marks(data) {
    const label = { color: color("soft"), fontSize: 10, backgroundColor: color("panel"), padding: [1, 3] };
    const vertical = (data.marks ?? []).map((mark) => ({
      xAxis: place(data, mark.at), name: mark.name, label: { ...label, formatter: mark.name, position: "insideEndTop" },
      lineStyle: { color: color(data.kind === "heatmap" ? "text" : "info"), type: "dashed" },
    }));
    const bounds = (data.bounds ?? []).map((bound) => ({
      yAxis: bound.value, name: bound.name, label: { ...label, formatter: bound.name, position: "insideEndTop" },
      lineStyle: { color: color(TONES[bound.tone] ?? "bad"), type: "solid" },
    }));
    const all = [...vertical, ...bounds];
    return all.length ? { symbol: "none", silent: true, animation: false, data: all } : undefined;
  }

  // Intervals: a vertical line with two ends at each point.
  function whiskers(data, series, at) {
    const stroke = tone(series, at);
    return {
      type: "custom", name: series.name, silent: true, z: 3, encode: { x: 0, y: [1, 2] },
      data: series.low.map((low, index) => [data.x.type === "category" ? index : place(data, data.x.values[index]), low, series.high[index]])
        .filter((each) => each[1] !== null && each[2] !== null),
      renderItem: (_, api) => {
        const [x, low] = api.coord([api.value(0), api.value(1)]);
        const [, high] = api.coord([api.value(0), api.value(2)]);
        const style = { stroke, lineWidth: 1.5, fill: "none" };
        const line = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style });
        return { type: "group", children: [line(x, low, x, high), line(x - 4, low, x + 4, low), line(x - 4, high, x + 4, high)] };
      },
    };
  }

  function plain(data) {
    const drawn = [];
    data.series.forEach((series, at) => {
      const kind = series.kind ?? data.kind;
      const stroke = tone(series, at);
      drawn.push({
        type: kind === "bar" || kind === "histogram" ? "bar" : kind === "scatter" ? "scatter" : "line",
        name: series.name, data: points(data, series.values), color: stroke, symbolSize: kind === "scatter" ? 8 : 5,
        showSymbol: series.values.length < 60, connectNulls: false, step: series.step ? "end" : undefined,
        lineStyle: { width: 2, type: series.dashed ? "dashed" : "solid" }, stack: series.stack,
        areaStyle: series.area ? { opacity: 0.25 } : undefined,
        barCategoryGap: kind === "histogram" ? "2%" : undefined, barMaxWidth: kind === "histogram" ? undefined : 48,
        markLine: at === 0 ? marks(data) : undefined, emphasis: { disabled: true },
      });
      if (series.low && series.high) drawn.push(whiskers(data, series, at));
    });
    return {
      xAxis: axis(data, data.x, true),
      yAxis: axis(data, { name: data.y?.name ?? "", unit: data.unit, min: data.y?.min, max: data.y?.max, interval: data.y?.interval, type: data.y?.type }, false),
      series: drawn,
      legend: data.series.length > 1 ? { top: 0, type: "scroll", textStyle: { color: color("text"), fontSize: 11 }, data: data.series.map((each) => each.name) } : undefined,
      tooltip: {
        trigger: data.kind === "scatter" ? "item" : "axis",
        formatter: (items) => {
          const all = Array.isArray(items) ? items : [items];
          const at = all[0].axisValue ?? all[0].value?.[0] ?? all[0].name;
          const head = data.x.type === "time" ? moment(at / 1000) : data.x.type === "category" ? String(at) : number(at, data.x.unit);
          const lines = all.filter((each) => each.seriesType !== "custom").map((each) => {
            const value = Array.isArray(each.value) ? each.value[1] : each.value;
            const series = data.series.find((one) => one.name === each.seriesName);
            const index = each.dataIndex;
            const span = series?.low?.[index] != null ? `  (${number(series.low[index], data.unit)} to ${number(series.high[index], data.unit)})` : "";
            const n = series?.n?.[index] != null ? `  n = ${series.n[index].toLocaleString("en")}` : "";
            return `${each.seriesName}: ${number(value, data.unit)}${span}${n}`;
          });
          return [head, ...lines].join("\n");
        },
      },
    };
  }

  function heat(data) {
    const values = data.cells.map((cell) => cell[2]).filter((value) => value !== null);
    const low = data.min ?? Math.min(0, ...values), high = data.max ?? Math.max(1e-9, ...values);
    return {
      grid: { top: 8, left: 8, right: 8, bottom: 52, containLabel: true },
      xAxis: axis(data, { ...data.x, type: "category" }, true),
      yAxis: { ...axis(data, { ...data.y, type: "category" }, false), inverse: true },
      visualMap: {
        min: low, max: high, calculable: false, orient: "horizontal", left: "center", bottom: 0, itemHeight: 120, itemWidth: 12,
        textStyle: { color: color("soft"), fontSize: 11 }, text: [number(high, data.unit), number(low, data.unit)], inRange: { color: [color("heat-0"), color("heat-1")] },
      },
      series: [{
        type: "heatmap", name: data.title ?? "", data: data.cells.filter((cell) => cell[2] !== null).map((cell) => cell.slice(0, 3)),
        markLine: marks({ ...data, x: { ...data.x, type: "category" } }),
        itemStyle: { borderColor: color("panel"), borderWidth: 1 }, emphasis: { itemStyle: { borderColor: color("text") } },
      }],
      tooltip: {
        trigger: "item",
        formatter: (item) => {
          const cell = data.cells.find((each) => each[0] === item.value[0] && each[1] === item.value[1]);
          return `${data.y.values[item.value[1]]}, ${data.x.values[item.value[0]]}\n${number(item.value[2], data.unit)}${cell?.[3] ? `\n${cell[3]}` : ""}`;
        },
      },
    };
  }

  function option(described, width) {
    const data = { ...described, width };
    const made = data.kind === "heatmap" ? heat(data) : plain(data);
    return {
      animation: !matchMedia("(prefers-reduced-motion: reduce)").matches && data.kind !== "heatmap", animationDuration: 200,
      useUTC: true, textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: color("text") },
      grid: { top: data.series?.length > 1 ? 44 : 20, left: 8, right: 22, bottom: data.x?.name ? 24 : 8, containLabel: true },
      ...made,
      tooltip: {
        renderMode: "richText", confine: true, backgroundColor: color("raised"), borderColor: color("line"),
        textStyle: { color: color("text"), fontSize: 12 }, ...made.tooltip,
      },
    };
  }

  function say(place, sentence) {
    const said = document.createElement("p");
    said.className = "wait";
    said.textContent = sentence;
    place.replaceChildren(said);
  }

  async function show(place) {
    await fill(place);
    place.dataset.drawn = "done";
  }

  async function fill(place) {
    say(place, "Loading …");
    let data;
    try {
      const answer = await fetch(place.dataset.chart, { headers: { "X-Umbel-Refresh": "1", Accept: "application/json" } });
      if (!answer.ok) throw new Error(String(answer.status));
      data = await answer.json();
    } catch {
      say(place, "The chart could not be fetched; reload the page.");
      return;
    }
    const empty = data.kind === "heatmap" ? !data.cells.length : !data.series.some((each) => each.values.some((value) => value !== null));
    if (empty) { say(place, data.empty ?? "no data"); return; }
    place.replaceChildren();
    const chart = echarts.init(place, null, { renderer: "canvas" });
    chart.setOption(option(data, place.clientWidth));
    shown.set(place, { chart, data });
    sizes.observe(place);
  }

  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) { shown.get(target)?.chart.resize(); repaint(target); }
  });
  function repaint(place) {
    const { chart, data } = shown.get(place) ?? {};
    chart?.setOption(option(data, place.clientWidth), true);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const place of shown.keys()) repaint(place); });
  // What was swapped out is let go, or a screen that refreshes for a day would hold every chart it ever drew.
  document.addEventListener("htmx:afterSwap", () => {
    for (const [place, { chart }] of shown) if (!place.isConnected) { sizes.unobserve(place); chart.dispose(); shown.delete(place); }
  });

  window.umbelCharts = { show };
})();
