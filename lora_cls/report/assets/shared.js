// What the pages share: their values, figures that are drawn at the width that there is, tables that sort. Names and texts
// of users only ever become text nodes and attribute values, never markup.
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const percent = d3.format(".0%");
// Marks of writing direction in a name end with it: it is put between FIRST STRONG ISOLATE and POP DIRECTIONAL ISOLATE.
const isolated = (name) => "\u2068" + name + "\u2069";
const short = (name, length = 14) => isolated([...name].length > length ? [...name].slice(0, length - 1).join("") + "…" : name);

// Draws `draw(figure, width)`, an SVG or an element that holds one, into every figure that can be seen, and again when its
// width changes. Returns the function that draws one again.
function drawFigures(draw) {
  function render(figure) {
    const plot = figure.querySelector(".plot"), width = Math.floor(plot.clientWidth);
    if (width < 50) return; // in a closed part
    plot.replaceChildren(draw(figure, width));
    const svg = [...plot.querySelectorAll("svg")].at(-1); // those before it are legends
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", figure.querySelector("figcaption").textContent.trim());
    figure.dataset.width = width;
  }
  const observer = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const figure = entry.target.parentElement;
      if (Math.abs(Math.floor(entry.contentRect.width) - (+figure.dataset.width || 0)) > 2) render(figure);
    }
  });
  for (const plot of document.querySelectorAll("[data-figure] > .plot")) observer.observe(plot);
  return render;
}

// A click on a heading of a `table.sortable` sorts by its column; what is undefined stands last.
function sortTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const numeric = [...body.rows].every((row) => row.cells[column].classList.contains("number"));
      if (numeric) cell.classList.add("number");
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.replaceChildren(button);
      const value = (row) => {
        const raw = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        return numeric ? (raw === "" ? NaN : +raw) : raw;
      };
      button.addEventListener("click", () => {
        const before = cell.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric; // numbers: the largest first
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const compare = numeric ? (down ? d3.descending : d3.ascending) : (a, b) => (down ? -1 : 1) * a.localeCompare(b);
        body.append(...d3.sort(body.rows, (a, b) => {
          const x = value(a), y = value(b);
          if (numeric && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y); // what is undefined stands last
          return compare(x, y);
        }));
      });
    });
  }
}
