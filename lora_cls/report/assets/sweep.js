
// ---- the page of a search: its figures ------------------------------------------------------------------------------
(() => {
  const { trials, fields, values, labels, objective, maximized } = content;
  const COMPLETE = 0, STOPPED = 1, FAILED = 2;
  const LEVELS = 24; // of colour
  const four = d3.format(".4f"), three = d3.format(".3f");
  const byId = (id) => document.getElementById(id);
  const all = d3.range(trials.number.length);
  const shown = (i) => (trials.state[i] === COMPLETE ? trials.score[i] : trials.mean[i]); // null where there is none
  const complete = all.filter((i) => trials.state[i] === COMPLETE && trials.score[i] !== null);
  const stopped = all.filter((i) => trials.state[i] === STOPPED && trials.mean[i] !== null);
  const failed = all.filter((i) => trials.state[i] === FAILED);
  const best = trials.number.indexOf(content.best);
  const better = (a, b) => (maximized ? a > b : a < b);
  const place = new Map(all.map((i) => [trials.number[i], i]));

  // ---- words ----------------------------------------------------------------------------------------------------
  const fieldName = (k, length = 40) => short(fields[k].name, length);
  function numberText(value, digits = 4) { // 0.001 is "1e-3"
    const rounded = +value.toPrecision(digits), size = Math.abs(rounded);
    return size && (size <= 1e-3 || size >= 1e6) ? rounded.toExponential() : String(rounded);
  }
  const valueText = (k, value) => (value === null ? "–" : fields[k].choices ? short(fields[k].choices[value], 24) : numberText(value));
  function about(i) {
    const lines = [`trial ${trials.number[i]}: ${objective} ${shown(i) === null ? "–" : four(shown(i))}`];
    if (trials.state[i] === STOPPED) lines.push("stopped early");
    if (trials.fresh[i] !== null) lines.push(`on fresh folds ${four(trials.fresh[i])}`);
    fields.slice(0, 8).forEach((field, k) => lines.push(`${fieldName(k, 30)} ${valueText(k, values[k][i])}`));
    if (trials.minutes[i] !== null) lines.push(`${trials.minutes[i].toFixed(2)} minutes`);
    return lines.join("\n");
  }

  // ---- scales ---------------------------------------------------------------------------------------------------
  // Colours are mixed of the page's own, so that they suit light, dark and paper.
  const mixed = (share, of, ground) => `color-mix(in srgb, ${of} ${(100 * share).toFixed(1)}%, ${ground})`;
  const worst = d3.quantile(complete, maximized ? 0.1 : 0.9, (i) => trials.score[i]);
  const goodness = (i) => { // 0: the worst tenth, 1: the best
    const span = trials.score[best] - worst;
    return span === 0 ? 1 : Math.max(0, Math.min(1, (trials.score[i] - worst) / span));
  };
  const scoreColor = (i) => mixed(goodness(i), "var(--yes)", "var(--no)");
  function axisOf(k, data) { // a Plot scale for a field
    const field = fields[k];
    if (field.choices) {
      const n = field.choices.length;
      return { type: "point", domain: d3.range(n), tickFormat: (j) => short(field.choices[j], n > 4 ? 8 : 14), tickRotate: n > 6 ? -40 : 0, padding: 0.5 };
    }
    const inside = data.map((i) => values[k][i]).filter((v) => v !== null);
    const low = Math.min(field.low, ...inside), high = Math.max(field.high, ...inside);
    if (!(field.log && low > 0)) return { type: "linear", domain: [low, high], ticks: 5 };
    const tens = d3.range(Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9) + 1).map((power) => +`1e${power}`);
    const ticks = tens.length > 1 ? tens : [low, Math.sqrt(low * high), high];
    return { type: "log", domain: [low, high], ticks, tickFormat: (value) => numberText(value, 2) };
  }
  const at = (k, value) => { // from 0 to 1 on the field's axis
    const { choices, low, high, log } = fields[k];
    if (value === null) return null;
    if (choices) return choices.length > 1 ? value / (choices.length - 1) : 0.5;
    const [a, b, v] = log && low > 0 && value > 0 ? [low, high, value].map(Math.log) : [low, high, value];
    return a === b ? 0.5 : Math.max(0, Math.min(1, (v - a) / (b - a)));
  };
  // A trial that went wrong altogether would press all others together: it stands at the edge.
  const range = (() => {
    const found = [...complete, ...stopped].map(shown).concat(trials.fresh.filter((v) => v !== null)).sort(d3.ascending);
    if (!found.length) return [0, 1];
    const low = found[0], high = found.at(-1), q1 = d3.quantileSorted(found, 0.25), q3 = d3.quantileSorted(found, 0.75);
    const reach = Math.max(4 * (q3 - q1), 1e-9);
    const from = maximized ? Math.max(low, q1 - reach) : low, to = maximized ? high : Math.min(high, q3 + reach);
    const room = Math.max(0.06 * (to - from), 1e-4);
    return [from - room, to + room];
  })();
  const scoreAxis = { label: objective, domain: range, grid: true, clamp: true, ticks: 6 };

  // ---- figures: name -> (width, figure) -> SVG --------------------------------------------------------------------
  const height = (width) => Math.round(Math.max(220, Math.min(340, width * 0.5)));
  function dots(x, data) { // marks of trials, against `x` of a trial
    const has = (list) => list.filter((i) => x(i) !== null && x(i) !== undefined);
    const r = data.length > 300 ? 2.5 : 4;
    return [
      Plot.dot(has(stopped), { x, y: shown, r, stroke: "var(--muted)", strokeWidth: 1.3 }),
      Plot.dot(has(complete), { x, y: shown, r, fill: "var(--accent)", fillOpacity: 0.75 }),
      Plot.dot(has([best]), { x, y: shown, r: 6, fill: "var(--yes)", stroke: "var(--card)" }),
      Plot.tip(has([...complete, ...stopped]), Plot.pointer({ x, y: shown, title: about, maxRadius: 30 })),
    ];
  }
  const draw = {
    history: (width) => {
      const by = byId("history-by").value, x = (i) => trials[by][i];
      const ended = complete.filter((i) => x(i) !== null).sort((a, b) => x(a) - x(b));
      const line = [];
      for (const i of ended) if (!line.length || better(trials.score[i], line.at(-1).score)) line.push({ x: x(i), score: trials.score[i] });
      const last = d3.max(all, x);
      if (line.length && last > line.at(-1).x) line.push({ x: last, score: line.at(-1).score });
      const fresh = complete.filter((i) => trials.fresh[i] !== null && x(i) !== null);
      return Plot.plot({
        width, height: height(width), marginLeft: 52, marginBottom: 36,
        x: { label: by === "number" ? "trial" : "minutes since the start", nice: true, ticks: Math.min(8, Math.max(2, last || 2)), tickFormat: by === "number" ? "d" : undefined, inset: 8 },
        y: scoreAxis,
        marks: [
          Plot.line(line, { x: "x", y: "score", stroke: "var(--yes)", strokeWidth: 2, curve: "step-after" }),
          Plot.link(fresh, { x1: x, x2: x, y1: shown, y2: (i) => trials.fresh[i], stroke: "var(--muted)", strokeDasharray: "3,2" }),
          Plot.dot(failed.filter((i) => x(i) !== null), { x, y: () => (maximized ? range[0] : range[1]), symbol: "times", r: 4, stroke: "var(--muted)", title: about }),
          ...dots(x, all),
          Plot.dot(fresh, { x, y: (i) => trials.fresh[i], symbol: "diamond", r: 5, fill: "var(--card)", stroke: "var(--yes)", strokeWidth: 2 }),
        ],
      });
    },
    parallel: (width) => {
      const row = 72, names = [...fields.keys(), "score"], narrow = width < 520;
      const [low, high] = d3.extent(complete, (i) => trials.score[i]);
      const scoreAt = (i) => (high === low ? 0.5 : (trials.score[i] - low) / (high - low));
      const points = (list) => list.flatMap((i) => names.map((name) => ({ i, name, p: name === "score" ? scoreAt(i) : at(name, values[name][i]) })));
      const ordered = d3.sort(complete, goodness); // the best on top
      const ticks = names.flatMap((name) => {
        const text = (p, words, anchor) => ({ name, p, text: words, anchor });
        if (name === "score") return [text(0, four(low), "start"), text(1, four(high), "end")];
        const { choices, low: from, high: to, log } = fields[name];
        if (!choices) {
          const middle = log && from > 0 ? Math.sqrt(from * to) : (from + to) / 2;
          const whole = values[name].every((v) => v === null || Number.isInteger(v)), words = (v) => numberText(v, 3);
          return [text(0, words(from), "start"), ...(whole && !Number.isInteger(middle) ? [] : [text(0.5, words(middle), "middle")]), text(1, words(to), "end")];
        }
        const n = choices.length, step = Math.ceil(n / (narrow ? 4 : 8)), length = Math.max(4, Math.floor((narrow ? 34 : 90) / Math.min(n, 8)));
        return choices.flatMap((choice, j) => (j % step && j !== n - 1 ? [] : [text(at(name, j), short(choice, length), n > 1 && j === 0 ? "start" : n > 1 && j === n - 1 ? "end" : "middle")]));
      });
      const anchored = (anchor) => Plot.text(ticks.filter((d) => d.anchor === anchor), { x: "p", y: "name", text: "text", dy: 13, textAnchor: anchor, fill: "var(--muted)", fontSize: 11, stroke: "var(--card)", strokeWidth: 3 });
      const line = (list, width_, color, opacity) => Plot.line(points(list), { x: "p", y: "name", z: "i", stroke: color, strokeWidth: width_, strokeOpacity: opacity, curve: "bump-y" });
      return Plot.plot({
        width, height: row * names.length + 24, marginLeft: 12, marginRight: 12, marginTop: 30, marginBottom: 26,
        x: { type: "linear", domain: [0, 1], axis: null }, y: { type: "point", domain: names, axis: null, padding: 0 },
        color: { type: "identity" },
        marks: [
          line(ordered.filter((i) => i !== best), complete.length > 200 ? 0.8 : 1.3, (d) => scoreColor(d.i), complete.length > 200 ? 0.45 : 0.75),
          line([best], 3, () => "var(--yes)", 1),
          Plot.ruleY(names, { y: (d) => d, stroke: "var(--ink)", strokeOpacity: 0.5 }),
          Plot.dot(ticks, { x: "p", y: "name", r: 2.5, fill: "var(--ink)" }),
          anchored("start"), anchored("middle"), anchored("end"),
          Plot.text(names, { x: 0, y: (d) => d, dy: -10, textAnchor: "start", fontWeight: 600, fontSize: 12, fill: "var(--ink)", stroke: "var(--card)", strokeWidth: 4, text: (name) => (name === "score" ? objective : fieldName(name)) }),
          Plot.tip(points(complete), Plot.pointer({ x: "p", y: "name", title: (d) => about(d.i), maxRadius: 30 })),
        ],
      });
    },
    importance: (width) => Plot.plot({
      width, height: 40 + 26 * content.importance.length, marginLeft: Math.min(180, width * 0.45), marginRight: 40,
      x: { domain: [0, 1], label: "share", ticks: 4, tickFormat: "~%", grid: true },
      y: { domain: content.importance.map(([name]) => name), label: null, tickSize: 0, tickFormat: (name) => short(name, width < 420 ? 20 : 28) },
      marks: [
        Plot.barX(content.importance, { x: (d) => d[1], y: (d) => d[0], fill: "var(--accent)", fillOpacity: 0.8 }),
        Plot.text(content.importance, { x: (d) => d[1], y: (d) => d[0], text: (d) => percent(d[1]), textAnchor: "start", dx: 4, fill: "var(--muted)" }),
      ],
    }),
    slice: (width, figure) => {
      const k = +figure.dataset.index, axis = axisOf(k, all);
      return Plot.plot({
        width, height: height(width * 0.8), marginLeft: 52, marginBottom: axis.tickRotate ? 64 : 38, marginRight: 16,
        x: { ...axis, label: fieldName(k), inset: 6 }, y: scoreAxis,
        marks: dots((i) => values[k][i], all),
      });
    },
    cost: (width) => {
      const by = byId("cost-by").value, x = (i) => trials[by][i];
      return Plot.plot({
        width, height: height(width), marginLeft: 52, marginBottom: 38, marginRight: 16,
        x: { label: by === "minutes" ? "minutes of the trial" : "rows trained", nice: true, zero: true, ticks: width < 500 ? 4 : 8, tickFormat: by === "rows" ? "~s" : undefined }, y: scoreAxis,
        marks: dots(x, all),
      });
    },
    heat: (width) => heat(width),
  };

  // ---- every label in every trial: a path for each colour, as a rectangle for each cell would be too many -----------
  const unpack = (row) => d3.range(row.length / 2).map((j) => (row[2 * j] === "." ? NaN : parseInt(row.slice(2 * j, 2 * j + 2), 36) / 1000));
  const tables = { f1: labels.f1.map(unpack), average_precision: labels.average_precision.map(unpack) };
  function heat(width) {
    const [measure, kind, by, order] = ["heat-measure", "heat-shown", "heat-by", "heat-labels"].map((id) => byId(id).value);
    const table = tables[measure], names = labels.names, n = table.length;
    const of = (row) => place.get(labels.trials[row]); // the trial of a row of the table
    const key = by === "score" ? (row) => trials.score[of(row)] : by === "number" ? (row) => labels.trials[row] : (row) => values[by][of(row)];
    const across = d3.sort(d3.range(n), by === "score" && !maximized ? (row) => -key(row) : key);
    const columns = names.map((_, j) => table.map((row) => row[j]).filter((v) => !isNaN(v)));
    const median = columns.map((column) => d3.median(column) ?? NaN);
    const spread = columns.map((column) => (d3.max(column) ?? 0) - (d3.min(column) ?? 0));
    const down = order === "order" ? d3.range(names.length) : d3.sort(d3.range(names.length), (j) => -(order === "median" ? median : spread)[j]);
    const value = (row, j) => (kind === "value" ? table[row][j] : table[row][j] - median[j]);
    const found = d3.cross(d3.range(n), d3.range(names.length), value).filter((v) => !isNaN(v)).map(Math.abs).sort(d3.ascending);
    // differences: one label that breaks down would leave all others pale
    const most = (kind === "value" ? found.at(-1) : d3.quantileSorted(found, 0.98)) || 1e-3;
    const from = kind === "value" ? 0 : -most;
    const level = (v) => Math.max(0, Math.min(LEVELS - 1, Math.floor(((v - from) / (most - from)) * LEVELS)));
    const colors = d3.range(LEVELS).map((l) => {
      const share = l / (LEVELS - 1);
      if (kind === "value") return mixed(share, "var(--accent)", "var(--back)");
      return share < 0.5 ? mixed(1 - 2 * share, "var(--yes)", "var(--back)") : mixed(2 * share - 1, "var(--accent)", "var(--back)");
    });
    byId("heat-low").textContent = kind === "value" ? "0" : `−${three(most)} or less`;
    byId("heat-high").textContent = kind === "value" ? three(most) : `+${three(most)} or more`;
    byId("heat-ramp").style.background = `linear-gradient(to right, ${colors.join(",")})`;

    const left = width < 420 ? 92 : 130, cell = Math.max(1, Math.min(46, (width - left - 8) / n)), tall = names.length > 40 ? 13 : 19;
    const gap = cell > 6 ? 1 : 0, size = [Math.max(width < left + 60 ? 60 : 0, n * cell), names.length * tall];
    const paths = (index, scales, channels, dimensions, context) => {
      const g = context.document.createElementNS("http://www.w3.org/2000/svg", "g");
      const parts = colors.map(() => []);
      down.forEach((j, y) => across.forEach((row, x) => {
        const v = value(row, j);
        if (!isNaN(v)) parts[level(v)].push(`M${(left + x * cell).toFixed(2)} ${20 + y * tall}h${(cell - gap).toFixed(2)}v${tall - 1}h${(gap - cell).toFixed(2)}z`);
      }));
      parts.forEach((d, l) => {
        if (!d.length) return;
        const path = context.document.createElementNS("http://www.w3.org/2000/svg", "path");
        path.setAttribute("d", d.join(""));
        path.setAttribute("fill", colors[l]);
        g.append(path);
      });
      return g;
    };
    const what = by === "score" ? objective : by === "number" ? "number" : fieldName(+by);
    const svg = Plot.plot({
      width: left + size[0] + 8, height: size[1] + 42, marginLeft: left, marginRight: 8, marginTop: 20, marginBottom: 22,
      x: { type: "linear", domain: [0, n], axis: null }, y: { type: "band", domain: down, padding: 0, label: null, tickSize: 0, tickFormat: (j) => short(names[j], width < 420 ? 13 : 18) },
      marks: [
        paths,
        cell >= 16 ? Plot.text(across, { x: (row, i) => i + 0.5, frameAnchor: "top", dy: -10, text: (row) => String(labels.trials[row]), fill: "var(--muted)", fontSize: 10 }) : null,
        Plot.text([`${cell >= 16 ? "numbers of the trials, " : "trials, "}by ${what}: ${by === "score" ? "worse to better" : "less to more"} →`], { frameAnchor: "bottom-left", dy: 16, fill: "var(--muted)", fontSize: 11 }),
      ],
    });
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), scale = (left + size[0] + 8) / box.width;
      const x = Math.floor(((event.clientX - box.left) * scale - left) / cell), y = Math.floor(((event.clientY - box.top) * scale - 20) / tall);
      if (!(x in across) || !(y in down)) return;
      const row = across[x], i = of(row), j = down[y], v = table[row][j];
      const settings = fields.map((field, k) => `${fieldName(k)} ${valueText(k, values[k][i])}`).join(", ");
      byId("heat-cell").textContent = `${isolated(names[j])}, trial ${labels.trials[row]}: ${isNaN(v) ? "undefined" : three(v)} (median ${isNaN(median[j]) ? "undefined" : three(median[j])}). ${settings}`;
    });
    return svg;
  }

  const render = drawFigures((figure, width) => draw[figure.dataset.figure](width, figure));
  for (const [id, figure] of [["history-by", "history"], ["cost-by", "cost"], ["heat-measure", "heat"], ["heat-shown", "heat"], ["heat-by", "heat"], ["heat-labels", "heat"]])
    byId(id)?.addEventListener("change", () => render(document.querySelector(`[data-figure="${figure}"]`)));
  sortTables();
})();
