// What a report does when somebody points at it: says what is there. All of it can be read without.
"use strict";

for (const plot of document.querySelectorAll(".plot[data-stops]")) {
  // Places that have something to say: [from, to, top, bottom, words], across in thousandths of the
  // width, down in pixels, ordered by lane and from left to right.
  const stops = JSON.parse(document.getElementById(plot.dataset.stops).textContent);
  if (!stops.length) continue;
  const cursor = plot.appendChild(document.createElement("div"));
  const tip = plot.appendChild(document.createElement("output"));
  cursor.className = "cursor";
  tip.className = "tip";
  tip.setAttribute("aria-live", "polite");
  let shown = -1;

  const hide = () => {
    shown = -1;
    cursor.hidden = tip.hidden = true;
  };
  const show = (index) => {
    if (index === shown) return;
    shown = index;
    const [from, to, top, bottom, words] = stops[index];
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${from / 10}%`;
    cursor.style.width = `${(to - from) / 10}%`;
    cursor.style.top = `${top}px`;
    cursor.style.height = `${bottom - top}px`;
    tip.textContent = words;
    const width = plot.clientWidth;
    const middle = ((from + to) / 2000) * width;
    // Beside what it tells of, and within the chart.
    const right = middle + 12 + tip.offsetWidth;
    const left = right <= width ? middle + 12 : Math.max(middle - 12 - tip.offsetWidth, 0);
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(bottom - top > 100 ? top + 8 : bottom + 8, 0)}px`;
  };

  // The one in the lane at y, or the nearest lane, that is nearest to x.
  const nearest = (x, y) => {
    let best = 0;
    let least = [Infinity, Infinity];
    stops.forEach(([from, to, top, bottom], index) => {
      const down = Math.max(top - y, y - bottom, 0);
      const across = Math.max(from - x, x - to, 0);
      if (down < least[0] || (down === least[0] && across < least[1])) {
        best = index;
        least = [down, across];
      }
    });
    return best;
  };
  const pointed = (event) => {
    const box = plot.getBoundingClientRect();
    show(nearest(((event.clientX - box.left) / box.width) * 1000, event.clientY - box.top));
  };
  const lane = (index) => stops[index][2];
  // The nearest one of the next lane in a direction.
  const beside = (index, step) => {
    let next = index;
    while (next >= 0 && next < stops.length && lane(next) === lane(index)) next += step;
    if (next < 0 || next >= stops.length) return index;
    return nearest((stops[index][0] + stops[index][1]) / 2, (lane(next) + stops[next][3]) / 2);
  };
  const keys = {
    ArrowRight: () => Math.min(shown + 1, stops.length - 1),
    ArrowLeft: () => Math.max(shown - 1, 0),
    ArrowDown: () => (shown < 0 ? 0 : beside(shown, 1)),
    ArrowUp: () => (shown < 0 ? 0 : beside(shown, -1)),
    Home: () => 0,
    End: () => stops.length - 1,
  };

  plot.addEventListener("pointermove", pointed);
  plot.addEventListener("pointerdown", pointed);
  plot.addEventListener("pointerleave", () => document.activeElement === plot || hide());
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    else if (Object.hasOwn(keys, event.key)) show(keys[event.key]());
    else return;
    event.preventDefault();
  });
  hide();
}

// Tables: a click at the head of a column sorts, once up, once down. Of long ones, the first rows
// are shown until somebody wants all.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  let limit = Number(table.dataset.rows);
  const fit = () => [...body.rows].forEach((row, place) => (row.hidden = place >= limit));
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rises = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rises ? "ascending" : "descending");
      const compare = (one, other) =>
        value(one, column).localeCompare(value(other, column), "en", { numeric: true });
      const difference = (one, other) => value(one, column) - value(other, column);
      const isNumber = [...body.rows].every((row) => "value" in row.cells[column].dataset);
      const rows = [...body.rows].sort(isNumber ? difference : compare);
      body.append(...(rises ? rows : rows.reverse()));
      fit();
    });
  });
  if (body.rows.length > limit) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "all";
    button.textContent = `Show all ${body.rows.length}`;
    button.addEventListener("click", () => {
      limit = Infinity;
      fit();
      button.remove();
    });
    table.parentElement.after(button);
    fit();
  }
}

// One of several, instead of all below each other.
for (const choice of document.querySelectorAll(".choice")) {
  const parts = [...choice.querySelectorAll(":scope > [data-choice]")];
  if (parts.length < 2) continue;
  const label = document.createElement("label");
  const select = document.createElement("select");
  label.append(choice.dataset.label, " ", select);
  parts.forEach((part) => select.add(new Option(part.dataset.choice)));
  const choose = () => {
    parts.forEach((part, index) => (part.hidden = index !== select.selectedIndex));
  };
  select.addEventListener("change", choose);
  choice.prepend(label);
  choose();
}
