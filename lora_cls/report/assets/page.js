
// ---- the page of a run: its figures, and sliders that move the thresholds ------------------------------------------
(() => {
  const labels = content.labels;
  const SERIES = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#edc948", "#9c755f", "#ff9da7", "#8f8f8f"];
  const LINE_POINTS = 400;
  const position = labels.map((label) => label.start); // of every label's slider
  const ratio = (above, below) => (below > 0 ? above / below : 0); // 0 for 0 / 0, as scikit-learn's zero_division=0

  function scores(label, i) {
    const tp = label.true_positives[i], predicted = label.predicted[i];
    return {
      threshold: label.thresholds[i],
      predicted,
      precision: ratio(tp, predicted),
      recall: ratio(tp, label.support),
      f1: ratio(2 * tp, predicted + label.support),
    };
  }
  const macro = (at) => d3.mean(labels, (label, j) => scores(label, at[j]).f1);

  // ---- figures: name -> (width, label) -> SVG -------------------------------------------------------------------
  const square = (width) => Math.round(Math.max(200, Math.min(300, width * 0.62)));
  const points = new Map();
  function curve(label) {
    if (!points.has(label)) {
      const n = label.thresholds.length, step = Math.max(1, Math.floor(n / LINE_POINTS));
      points.set(label, d3.range(n).filter((i) => i % step === 0 || i === n - 1).map((i) => scores(label, i)));
    }
    return points.get(label);
  }
  // Most labels are rare, and their probabilities low: a square root gives those room.
  const rooted = { type: "sqrt", domain: [0, 1], ticks: [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1], tickFormat: "~g" };
  const here = (label) => (content.task === "single_label" ? [] : [scores(label, position[labels.indexOf(label)])]);

  function names(indices, width) {
    const length = width < 420 ? 10 : 16;
    return { domain: indices, tickFormat: (j) => short(labels[j].name, length), label: null };
  }

  function matrix(width, cells, totals, above, across, most, diagonal) {
    const indices = content.matrices.labels, n = indices.length;
    const size = Math.max(13, Math.min(46, (width - 110) / n)); // on a phone the figure scrolls
    const small = size < 16;
    const data = d3.cross(d3.range(n), d3.range(n), (a, b) => ({
      a: indices[a], b: indices[b], count: cells[a][b], share: ratio(cells[a][b], totals[a]), own: a === b,
    })).filter((d) => diagonal || !d.own);
    const style = { fontSize: small ? "9px" : "11px" };
    return Plot.plot({
      width: size * n + 110, height: size * n + 90, marginLeft: 100, marginBottom: 80, marginTop: 10, marginRight: 10, style,
      x: { ...names(indices, width), tickRotate: -60, tickSize: 0 },
      y: { ...names(indices, width), tickSize: 0 },
      opacity: { type: "linear", domain: [0, most], range: [0.03, 1], clamp: true },
      marks: [
        Plot.cell(data, { x: "b", y: "a", fill: "var(--accent)", fillOpacity: (d) => d.share, inset: size > 14 ? 0.5 : 0 }),
        size >= 28 ? Plot.text(data, { x: "b", y: "a", text: (d) => (d.count ? percent(d.share) : ""), fill: (d) => (d.share > 0.7 * most ? "var(--card)" : "var(--ink)"), fontSize: 10 }) : null,
        Plot.tip(data, Plot.pointer({
          x: "b", y: "a",
          title: (d) => `${above} ${isolated(labels[d.a].name)}, ${across} ${isolated(labels[d.b].name)}\n${d.count} rows, ${percent(d.share)}`,
        })),
      ],
    });
  }

  function mostTogether() { // one scale for both, so that they compare
    const { true: there, predicted, true_rows, predicted_rows } = content.matrices;
    const greatest = (cells, totals) => d3.max(cells, (row, a) => d3.max(row, (count, b) => (a === b ? 0 : ratio(count, totals[a]))));
    return Math.max(greatest(there, true_rows), greatest(predicted, predicted_rows)) || 1;
  }

  const byFold = { legend: true, domain: content.folds.map((fold) => fold.fold), tickFormat: (fold) => `fold ${fold}`, range: SERIES, type: "categorical" };
  function perLabelDots(width, value, bar, title, domain) {
    const indices = content.matrices.labels;
    const dots = content.folds.flatMap((fold) => indices.map((j) => ({ j, fold: fold.fold, value: value(fold, j) })));
    return Plot.plot({
      width, height: 50 + 20 * indices.length, marginLeft: width < 420 ? 80 : 110, marginBottom: 36,
      x: { ...domain, label: title, grid: true },
      y: names(indices, width),
      color: byFold,
      marks: [
        Plot.tickX(indices.map((j) => ({ j, value: bar(j) })), { x: "value", y: "j", stroke: "var(--ink)", strokeWidth: 3 }),
        Plot.dot(dots, { x: "value", y: "j", stroke: "fold", fill: "fold", fillOpacity: 0.5, r: 3.5, tip: true, title: (d) => `${isolated(labels[d.j].name)}\nfold ${d.fold}: ${d3.format(".4f")(d.value)}` }),
      ],
    });
  }

  function epochs(width, key, title) {
    const data = content.folds.flatMap((fold) => fold.epochs.filter((e) => key in e).map((e) => ({ fold: fold.fold, epoch: e.epoch, value: e[key] })));
    const last = d3.max(data, (d) => d.epoch) || 1;
    return Plot.plot({
      width, height: square(width), marginLeft: 48,
      x: { label: "epoch", ticks: d3.range(1, last + 1), tickFormat: "d", domain: last > 1 ? [1, last] : [0.5, 1.5] },
      y: { label: title, grid: true, nice: true, zero: key === "loss" },
      color: byFold,
      marks: [Plot.line(data, { x: "epoch", y: "value", z: "fold", stroke: "fold" }), Plot.dot(data, { x: "epoch", y: "value", fill: "fold", tip: true })],
    });
  }

  const limits = () => (content.task === "single_label" ? { zero: true, nice: true } : rooted);
  const shipped = (j) => labels[j].thresholds[labels[j].start];
  const draw = {
    precision_recall: (width, label) => Plot.plot({
      width, height: square(width), marginLeft: 44,
      x: { label: "recall", domain: [0, 1] }, y: { label: "precision", domain: [0, 1], grid: true },
      marks: [
        Plot.ruleY([label.support / label.rows], { stroke: "var(--muted)", strokeDasharray: "3,3" }),
        Plot.line(curve(label).filter((d) => d.predicted > 0), { x: "recall", y: "precision", stroke: "var(--accent)", strokeWidth: 2 }),
        Plot.dot(here(label), { x: "recall", y: "precision", r: 5, fill: "var(--yes)" }),
      ],
    }),
    f1: (width, label) => Plot.plot({
      width, height: square(width), marginLeft: 44,
      x: { ...rooted, label: "threshold" }, y: { label: "F1", domain: [0, 1], grid: true },
      marks: [
        Plot.line(curve(label), { x: "threshold", y: "f1", stroke: "var(--accent)", strokeWidth: 2 }),
        Plot.ruleX([label.thresholds[label.start]], { stroke: "var(--muted)", strokeDasharray: "3,3" }),
        Plot.ruleX(here(label), { x: "threshold", stroke: "var(--yes)" }),
        Plot.dot(here(label), { x: "threshold", y: "f1", r: 5, fill: "var(--yes)" }),
      ],
    }),
    histogram: (width, label) => {
      const n = label.positives_by_score.length;
      const bars = d3.range(n).flatMap((i) => [
        { from: i / n, to: (i + 1) / n, rows: label.negatives_by_score[i], what: "without" },
        { from: i / n, to: (i + 1) / n, rows: label.positives_by_score[i], what: "with" },
      ]).filter((d) => d.rows > 0);
      return Plot.plot({
        width, height: square(width), marginLeft: 48,
        x: { label: "probability", domain: [0, 1] }, y: { label: "rows (root scale)", type: "sqrt", grid: true, nice: true, ticks: 5 },
        color: { domain: ["without", "with"], range: ["var(--no)", "var(--yes)"], legend: true },
        marks: [
          Plot.rectY(bars.filter((d) => d.what === "without"), { x1: "from", x2: "to", y: "rows", y1: 0, y2: "rows", fill: "what", fillOpacity: 0.55, insetLeft: 0.5 }),
          Plot.rectY(bars.filter((d) => d.what === "with"), { x1: "from", x2: "to", y1: 0, y2: "rows", fill: "what", fillOpacity: 0.65, insetLeft: 0.5 }),
          Plot.ruleX(here(label), { x: "threshold", stroke: "var(--ink)", strokeWidth: 1.5 }),
        ],
      });
    },
    calibration: (width, label) => {
      const bins = d3.range(label.mean_score.length).map((i) => ({ p: label.mean_score[i], share: label.share_positive[i], rows: label.bin_rows[i] }));
      return Plot.plot({
        width, height: square(width), marginLeft: 44,
        x: { ...rooted, label: "mean probability" }, y: { ...rooted, label: "share of positives", grid: true },
        marks: [
          Plot.line([[0, 0], [1, 1]], { stroke: "var(--muted)", strokeDasharray: "3,3" }),
          Plot.line(bins, { x: "p", y: "share", stroke: "var(--accent)" }),
          Plot.dot(bins, { x: "p", y: "share", fill: "var(--accent)", r: 4, tip: true, title: (d) => `probability ${d.p.toFixed(3)}\npositive ${d.share.toFixed(3)}\n${d.rows} rows` }),
        ],
      });
    },
    confusion: (width) => matrix(width, content.matrices.confusion, content.matrices.true_rows, "true", "decided", 1, true),
    true_together: (width) => matrix(width, content.matrices.true, content.matrices.true_rows, "with", "also", mostTogether(), false),
    predicted_together: (width) => matrix(width, content.matrices.predicted, content.matrices.predicted_rows, "with", "also", mostTogether(), false),
    fold_f1: (width) => perLabelDots(width, (fold, j) => fold.f1[j], (j) => content.pooled.f1[j], "F1", { domain: [0, 1] }),
    fold_thresholds: (width) => perLabelDots(width, (fold, j) => fold.thresholds[j], shipped, content.task === "single_label" ? "weight" : "threshold", limits()),
    loss: (width) => epochs(width, "loss", "loss"),
    selection: (width) => epochs(width, "selection_macro_f1", "macro-F1"),
    prevalence: (width) => Plot.plot({
      width, height: 40 + 20 * labels.length, marginLeft: width < 420 ? 80 : 110, marginRight: 40,
      x: { label: null, tickFormat: "~%", grid: true, ticks: 5 }, y: { ...names(d3.range(labels.length), width), domain: d3.sort(d3.range(labels.length), (j) => -content.prevalence[j]) },
      marks: [
        Plot.barX(content.prevalence, { x: (d) => d, y: (d, j) => j, fill: "var(--accent)", fillOpacity: 0.8 }),
        Plot.text(content.prevalence, { x: (d) => d, y: (d, j) => j, text: (d) => d3.format(".1%")(d), textAnchor: "start", dx: 4, fill: "var(--muted)" }),
      ],
    }),
    labels_per_row: (width) => Plot.plot({
      width, height: square(width), marginLeft: 56,
      x: { label: "labels", tickFormat: "d" }, y: { label: "rows", grid: true },
      marks: [Plot.barY(content.labels_per_row, { x: (d, i) => i, y: (d) => d, fill: "var(--accent)", fillOpacity: 0.8, tip: true })],
    }),
    lengths: (width) => Plot.plot({
      width, height: square(width), marginLeft: 56,
      x: { label: "words" }, y: { label: "texts", grid: true },
      marks: [Plot.rectY(content.lengths.counts, { x1: (d, i) => i * content.lengths.width, x2: (d, i) => (i + 1) * content.lengths.width, y1: 0, y2: (d) => d, fill: "var(--accent)", fillOpacity: 0.8, insetLeft: 0.5 })],
    }),
    seconds: (width) => Plot.plot({
      width, height: 60 + 24 * content.folds.length, marginLeft: 50,
      x: { label: "seconds", grid: true, ticks: 5 }, y: { label: null, domain: content.folds.map((fold) => fold.fold), tickFormat: (fold) => `fold ${fold}` },
      color: { domain: ["train", "predict"], range: ["var(--accent)", "var(--yes)"], legend: true },
      marks: [Plot.barX(content.folds.flatMap((fold) => ["train", "predict"].map((what) => ({ fold: fold.fold, what, seconds: fold.seconds[what] }))), { x: "seconds", y: "fold", fill: "what", fillOpacity: 0.8 })],
    }),
  };

  const render = drawFigures((figure, width) => draw[figure.dataset.figure](width, labels[+figure.dataset.index]));

  // ---- sliders ----------------------------------------------------------------------------------------------------
  const format = { threshold: (v) => String(+v.toPrecision(6)), predicted: String, f1: d3.format(".4f"), precision: d3.format(".4f"), recall: d3.format(".4f") };
  function show(card) {
    const j = +card.dataset.index, now = scores(labels[j], position[j]);
    for (const [key, text] of Object.entries(format)) {
      const output = card.querySelector(`output[data-of="${key}"]`);
      output.textContent = text(now[key]);
      output.dataset.exact = now[key];
    }
    card.querySelector('output[data-of="f1-short"]').textContent = now.f1.toFixed(3);
    card.querySelector("input").value = now.threshold; // the place on the bar is the threshold
    card.querySelector("input").setAttribute("aria-valuetext", format.threshold(now.threshold));
  }
  function showMacro() {
    const output = document.getElementById("macro"), value = macro(position);
    output.textContent = value.toFixed(4);
    output.dataset.exact = value;
  }
  const cards = [...document.querySelectorAll("details.label")];
  const waiting = new Set();
  function redraw(card) {
    if (!waiting.size) requestAnimationFrame(() => {
      for (const one of waiting) for (const figure of one.querySelectorAll("[data-figure]:not([data-figure=calibration])")) render(figure);
      waiting.clear();
    });
    waiting.add(card);
  }
  if (content.task !== "single_label") {
    for (const card of cards) {
      show(card);
      const label = labels[+card.dataset.index];
      const move = (stop) => {
        position[+card.dataset.index] = Math.max(0, Math.min(label.thresholds.length - 1, stop));
        show(card);
        showMacro();
        redraw(card);
      };
      const slider = card.querySelector("input");
      slider.addEventListener("input", () => move(d3.bisectCenter(label.thresholds, +slider.value)));
      slider.addEventListener("keydown", (event) => { // stops lie close together where probabilities do
        const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
        if (step === undefined) return;
        event.preventDefault();
        move(position[+card.dataset.index] + step);
      });
    }
    document.getElementById("macro-shipped").textContent = macro(labels.map((label) => label.start)).toFixed(4);
    document.getElementById("reset").addEventListener("click", () => {
      labels.forEach((label, j) => { position[j] = label.start; });
      cards.forEach((card) => { show(card); if (card.open) redraw(card); });
      showMacro();
    });
    showMacro();
  }
  for (const [button, open] of [[".open-all", true], [".close-all", false]])
    document.querySelector(button).addEventListener("click", () => cards.forEach((card) => { card.open = open; }));

  sortTables();
})();
