"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const several = page.runs.length > 1;
  const COLOURS = ["#3f86dd", "#e0762d", "#2f9e66", "#b25fc9", "#d1435b", "#9a8a1f", "#2aa5b8", "#8d8d8d"];
  const DASHES = ["solid", "dot", "dash", "dashdot", "longdash"];
  const EVENTS = { restart: ["#2f9e66", "triangle-up"], rollback: ["#d1435b", "triangle-left"], fault: ["#d1435b", "x"] };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touched = matchMedia("(pointer: coarse)").matches;
  let axis = "images";

  // ---- charts

  const hours = (run, images) => { // between the reports
    const { images: x, hours: y } = page.runs[run];
    if (!x.length) return null;
    let low = 0, high = x.length - 1;
    if (images >= x[high]) return y[high];
    if (images <= x[0]) return x[0] ? (y[0] * images) / x[0] : y[0];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (x[middle] <= images) low = middle;
      else high = middle;
    }
    return y[low] + ((y[high] - y[low]) * (images - x[low])) / (x[high] - x[low]);
  };
  const place = (run, images) => (axis === "images" ? images : hours(run, images));

  const line = (chart) => ({ run, place: number, name, x, y }) => ({
    type: "scatter",
    name,
    x: x.map((images) => place(run, images)),
    y,
    mode: x.length > 1 ? "lines" : "markers",
    line: { width: 1.6, color: COLOURS[(several && !chart.stack ? run : number) % COLOURS.length],
      dash: several && !chart.stack ? DASHES[number % DASHES.length] : "solid" },
    hovertemplate: "%{y:.4g}",
    ...(chart.stack ? { stackgroup: "all", line: { width: 0, color: COLOURS[number % COLOURS.length] } } : {}),
  });

  const markers = () => Object.entries(EVENTS).flatMap(([kind, [color, symbol]]) => {
    const events = page.events.filter((event) => event.kind === kind);
    return events.length === 0 ? [] : [{
      type: "scatter", mode: "markers", yaxis: "y2", name: kind, x: events.map((event) => place(event.run, event.images)),
      y: events.map(() => 0.02), text: events.map((event) => event.text), marker: { color, symbol, size: 9 },
      hovertemplate: "%{text}", cliponaxis: false,
    }];
  });

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { text: of("--text"), faint: of("--faint"), rule: of("--rule"), card: of("--card") };
  };

  const layout = (chart) => {
    const { text, faint, rule, card } = colours();
    const common = { gridcolor: rule, zerolinecolor: rule, linecolor: rule, automargin: true };
    const vertical = page.events.filter((event) => event.kind in EVENTS).slice(-200).map((event) => ({
      type: "line", yref: "paper", y0: 0, y1: 1, x0: place(event.run, event.images), x1: place(event.run, event.images),
      layer: "below", line: { color: EVENTS[event.kind][0], width: 1, dash: "dot" },
    }));
    const levels = chart.levels.map(([level]) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: faint, width: 1, dash: "dash" },
    }));
    return {
      height: 320, margin: { l: 8, r: 12, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: text }, hovermode: "x unified",
      hoverlabel: { bgcolor: card, bordercolor: rule, font: { color: text } },
      dragmode: touched ? false : "zoom", // one finger scrolls the page
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, showlegend: true,
      modebar: { color: faint, activecolor: text, bgcolor: "rgba(0,0,0,0)" },
      xaxis: { ...common, title: { text: axis === "images" ? "real images seen" : "hours of training" },
        tickformat: axis === "images" ? "~s" : "", hoverformat: axis === "images" ? "," : ".2f", rangemode: "tozero" },
      yaxis: { ...common, title: { text: chart.unit }, type: chart.log ? "log" : "linear",
        tickformat: chart.log ? "~g" : "", ...(chart.stack ? { rangemode: "tozero" } : {}) },
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
      shapes: [...vertical, ...levels],
      annotations: chart.levels.filter(([, label]) => label).map(([level, label]) => ({
        text: label, xref: "paper", x: 1, xanchor: "right", yref: "y", y: chart.log ? Math.log10(level) : level,
        yanchor: "bottom", showarrow: false, font: { size: 10, color: faint },
      })),
    };
  };

  const bars = () => {
    const { bars: attempts } = page;
    return [{
      type: "bar", orientation: "h", base: attempts.map((one) => one.begin), y: attempts.map((one) => one.run),
      x: attempts.map((one) => Math.max(Date.parse(one.end) - Date.parse(one.begin), 1000)),
      text: attempts.map((one) => one.label), textposition: "inside", insidetextanchor: "middle", hovertext: attempts.map((one) => one.text),
      hovertemplate: "%{hovertext}<extra></extra>", marker: { color: attempts.map((one) => (one.killed ? COLOURS[4] : COLOURS[0])),
        line: { width: 1, color: colours().card } }, width: 0.6,
    }];
  };
  const barLayout = () => {
    const { yaxis2, ...plain } = layout({ levels: [], unit: "" });
    return { ...plain, height: 110 + 40 * page.runs.length, hovermode: "closest", showlegend: false, shapes: [],
      xaxis: { ...plain.xaxis, type: "date", title: { text: "time (UTC)" }, tickformat: undefined, hoverformat: undefined },
      yaxis: { ...plain.yaxis, type: "category", autorange: "reversed" } };
  };

  const CONFIG = { // named one by one, for one of Plotly's own buttons sends the chart to a server
    responsive: true, displaylogo: false, displayModeBar: touched ? false : "hover", plotlyServerURL: "",
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
  };
  const drawn = [];
  const content = ({ chart, id }) => (id === "chart-attempts" ? [bars(), barLayout()]
    : [[...chart.lines.map(line(chart)), ...markers()], layout(chart)]);

  let zooming = false; // all charts show the same part of the run
  const zoom = async (source, change) => {
    const range = ["xaxis.range[0]", "xaxis.range[1]"].map((name) => change[name]);
    const update = change["xaxis.autorange"] ? { "xaxis.autorange": true } : { "xaxis.range": range };
    if (zooming || (!change["xaxis.autorange"] && range.includes(undefined))) return;
    zooming = true;
    await Promise.all(drawn.filter((one) => one !== source && one.id !== "chart-attempts")
      .map((one) => Plotly.relayout(one.element, update)));
    zooming = false;
  };
  const draw = async (element) => {
    const one = { element, id: element.id, chart: page.charts[element.dataset.chart] };
    drawn.push(one);
    await Plotly.newPlot(element, ...content(one), CONFIG);
    if (one.id !== "chart-attempts") element.on("plotly_relayout", (change) => zoom(one, change));
  };
  const drawAll = async (within) => { // those that can be seen
    for (const element of within.querySelectorAll(".chart:not(.js-plotly-plot)")) {
      if (element.closest("details:not([open])")) continue;
      await draw(element);
      await new Promise((resolve) => setTimeout(resolve)); // the slider works meanwhile
    }
    document.documentElement.dataset.ready = String(drawn.length);
  };
  const redraw = () => Promise.all(drawn.map((one) => Plotly.react(one.element, ...content(one), CONFIG)));

  dark.addEventListener("change", redraw);
  for (const button of document.querySelectorAll("input[name=axis]"))
    button.addEventListener("change", () => { axis = button.value; redraw(); });
  for (const details of document.querySelectorAll("details"))
    details.addEventListener("toggle", () => drawAll(details));

  // ---- grids

  const slider = document.getElementById("slider");
  if (slider) {
    const label = document.getElementById("grid-label");
    const play = document.getElementById("play");
    const shown = page.grids.map((grids) => Object.keys(grids).map(Number));
    const steps = [...new Set(shown.flat())].sort((a, b) => a - b);
    const latest = (run, step) => shown[run].findLast((images) => images <= step) ?? shown[run][0];
    const show = () => {
      const step = steps[slider.valueAsNumber];
      page.grids.forEach((grids, run) => {
        const images = latest(run, step);
        const element = document.getElementById(`grid-${run}`);
        if (!element) return;
        element.src = grids[images];
        element.alt = `Generated images of ${page.runs[run].name} after ${images.toLocaleString("en")} real images`;
        element.nextElementSibling.textContent = `${several ? `${page.runs[run].name}: ` : ""}generated, at ${images.toLocaleString("en")} images`;
      });
      label.textContent = `${step.toLocaleString("en")} images (grid ${slider.valueAsNumber + 1} of ${steps.length})`;
      slider.setAttribute("aria-valuetext", label.textContent);
    };
    let timer = 0;
    const pause = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
    const move = (to) => { slider.value = to; show(); };
    play.addEventListener("click", () => {
      if (timer) return pause();
      if (slider.valueAsNumber === steps.length - 1) move(0);
      play.textContent = "Pause";
      timer = setInterval(() => { move(slider.valueAsNumber + 1); if (slider.valueAsNumber === steps.length - 1) pause(); }, 150);
    });
    slider.max = steps.length - 1;
    slider.addEventListener("input", () => { pause(); show(); });
    document.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, [tabindex]")) return;
      event.preventDefault();
      pause();
      move(slider.valueAsNumber + by);
    });
    move(steps.length - 1);
  }

  drawAll(document);
})();
