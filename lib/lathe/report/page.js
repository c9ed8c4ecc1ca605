// Draws the page's charts with uPlot from the JSON in #data, in the colours of the style sheet. A legend shows the values under the cursor,
// and the last ones where there is none.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const several = data.runs.length > 1;
  const hidden = new Set();
  let plots = [];

  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const trimmed = text => text.replace(/\.?0+(e|$)/, "$1");

  function formatNumber(value) {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-4 || size >= 1e7) return trimmed(value.toExponential(3)).replace("e+", "e");
    if (size >= 1e3) return Math.round(value).toLocaleString("en");
    const text = value.toPrecision(4);
    return text.includes(".") ? trimmed(text) : text;
  }

  function formatBytes(value) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    for (; value >= 1024 && unit + 1 < units.length; ++unit) value /= 1024;
    return (unit === 0 ? value : trimmed(value.toFixed(1)) || "0") + " " + units[unit];
  }

  function series(curve, format) {
    const colour = css("--run-" + curve.run % 8);
    const faint = curve.kind === "raw";
    const cycle = Math.floor(curve.run / 8);
    const last = curve.y.filter(y => y !== null).at(-1);
    return {
      label: several ? data.runs[curve.run] + (curve.kind === "limit" ? ", " + curve.label : "") : curve.label,
      class: several && faint ? "quiet" : "curve",
      stroke: faint ? colour + "55" : colour,
      width: faint || curve.kind === "limit" ? 1 : 1.5,
      dash: curve.kind === "limit" ? (curve.label === "measured peak" ? [2, 3] : [8, 4]) : cycle > 0 ? [4 * cycle, 3] : undefined,
      points: curve.kind === "points" ? {show: true, size: 7, fill: colour, stroke: colour} : {show: curve.x.length === 1, size: 7, fill: colour},
      show: !hidden.has(curve.run),
      value: (_, value, __, index) => index == null ? format(last) : value == null ? "\u2013" : format(value),
    };
  }

  function yRange(chart) {
    return (_, low, high) => {
      if (low == null) return [0, 1];
      const bottom = chart.from_zero ? Math.min(0, low) : low;
      const pad = 0.06 * (high - bottom) || 0.01 * Math.abs(high) || 1;
      return [chart.from_zero && low >= 0 ? 0 : bottom - pad, high + pad];
    };
  }

  function axis(label, extra) {
    const font = "12px system-ui, sans-serif";
    return {label, stroke: css("--dim"), font, labelFont: font, labelSize: 20, grid: {stroke: css("--grid"), width: 1}, ticks: {stroke: css("--line"), width: 1}, ...extra};
  }

  function draw(chart) {
    const place = document.querySelector("#chart-" + chart.id + " .plot");
    const format = chart.bytes ? formatBytes : formatNumber;
    const size = () => ({width: Math.max(place.clientWidth, 200), height: 260});
    const yAxis = {size: chart.bytes ? 72 : 62, values: (_, splits) => splits.map(format)};
    if (chart.bytes) yAxis.incrs = Array.from({length: 50}, (_, power) => 2 ** power);
    const lastStep = Math.max(...chart.curves.map(curve => curve.x.at(-1)));
    const options = {
      ...size(),
      scales: {x: {time: false}, y: {range: yRange(chart)}},
      axes: [axis(chart.x_label, {size: 32, values: (_, splits) => splits.map(step => Number.isInteger(step) ? formatNumber(step) : "")}), axis(chart.y_label, yAxis)],
      series: [{label: chart.x_label, value: (_, step) => (step ?? lastStep).toLocaleString("en")}, ...chart.curves.map(curve => series(curve, format))],
      cursor: {sync: {key: chart.x_label, setSeries: false}, points: {size: 7}},
    };
    // Curves have steps of their own: a join marks what a curve lacks as undefined, which, unlike null, is no gap.
    const plot = new uPlot(options, uPlot.join(chart.curves.map(curve => [curve.x, curve.y])), place);
    return {plot, size, curves: chart.curves};
  }

  function drawAll() {
    for (const {plot} of plots) plot.destroy();
    plots = data.charts.map(draw);
  }

  function toggle(button) {
    const run = Number(button.dataset.run);
    const show = hidden.delete(run) || !hidden.add(run);
    button.setAttribute("aria-pressed", String(show));
    for (const {plot, curves} of plots) {
      plot.batch(() => curves.forEach((curve, i) => {
        if (curve.run === run) plot.setSeries(i + 1, {show});
      }));
    }
  }

  for (const button of document.querySelectorAll(".runs button")) {
    button.disabled = false;
    button.addEventListener("click", () => toggle(button));
  }
  drawAll();
  addEventListener("resize", () => {
    for (const {plot, size} of plots) plot.setSize(size());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
