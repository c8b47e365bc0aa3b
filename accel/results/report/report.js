"use strict";
/* The page's own script: the fronts (SVG as text, so that they can be drawn without a browser) and sorting of tables. */
const Report = (() => {
  const SHAPES = {
    "plain sampler": circle(5),
    cache: polygon(4, 6.4, Math.PI / 4),
    stitch: polygon(3, 7, -Math.PI / 2),
    precision: polygon(4, 6.4, 0),
    guidance: polygon(5, 6.4, -Math.PI / 2),
    skip: polygon(3, 7, Math.PI / 2),
    combined: star(5, 8, 3.4),
  };
  const MOST_LOG = 4; // costs and losses that span more than this factor are logarithmic, where none is 0 or below

  function polygon(corners, radius, turn) {
    const at = (i) => [radius * Math.cos(turn + (2 * Math.PI * i) / corners), radius * Math.sin(turn + (2 * Math.PI * i) / corners)];
    return "M" + Array.from({ length: corners }, (_, i) => at(i).map(short).join(" ")).join("L") + "Z";
  }

  function star(points, outer, inner) {
    const at = (i) => {
      const angle = -Math.PI / 2 + (Math.PI * i) / points, radius = i % 2 ? inner : outer;
      return [radius * Math.cos(angle), radius * Math.sin(angle)].map(short).join(" ");
    };
    return "M" + Array.from({ length: 2 * points }, (_, i) => at(i)).join("L") + "Z";
  }

  function circle(r) {
    return `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`;
  }

  function short(number) {
    return String(Math.round(number * 100) / 100);
  }

  function esc(text) {
    const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
    return String(text).replace(/[&<>"']/g, (c) => names[c]);
  }

  function written(value) {
    return String(Number(value.toPrecision(3)));
  }

  /* Where an axis begins and ends. Only a value can pull it below 0, never the end of an interval that is symmetric about
     a small value. What is better when higher has a best value, near which a logarithmic scale would hide everything. */
  function scale(intervals, from, to, losses = true) {
    const values = intervals.map((x) => x[0]), least = Math.min(...values), most = Math.max(...values);
    let low = Math.min(...intervals.map((x) => x[1])), high = Math.max(...intervals.map((x) => x[2]));
    const log = losses && least > 0 && most > MOST_LOG * least;
    if (log) {
      low = Math.max(low, 0.7 * least);
      const room = Math.pow(high / low, 0.06);
      low /= room;
      high *= room;
    } else {
      const room = high - low || Math.abs(high) || 1;
      low = least >= 0 ? Math.max(0, low - 0.06 * room) : low - 0.06 * room;
      high += 0.06 * room;
    }
    const f = log ? Math.log : (x) => x;
    const place = (x) => {
      const part = (f(Math.min(Math.max(x, low), high)) - f(low)) / (f(high) - f(low));
      return from + part * (to - from);
    };
    return { low, high, log, place, ticks: ticks(low, high, log, Math.abs(to - from)) };
  }

  function ticks(low, high, log, pixels) {
    const decades = log ? Math.log10(high / low) : 0;
    if (decades > 0.6) {
      const subs = decades > 4 ? [1] : decades > 2 ? [1, 3] : decades > 1 ? [1, 2, 5] : [1, 2, 3, 5, 7], found = [];
      for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d++)
        for (const s of subs) found.push(Number((s * Math.pow(10, d)).toPrecision(3)));
      return found.filter((x) => x >= low && x <= high);
    }
    const rough = (high - low) / Math.max(3, Math.min(6, pixels / 60)), power = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = power * ([1, 2, 5].find((s) => s * power >= rough) || 10), found = [];
    for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }

  /* The points that no other beats in cost and quality, by rising cost (falling speed-up): their places in `points`. Of
     what recipes are ranked by, quality is the loss in all values, where every point has one. */
  function front(points, x, y) {
    const whole = y.judged && points.every((p) => p.loss !== null);
    const cost = (p) => (x.higher ? -p.x[x.key][0] : p.x[x.key][0]);
    const loss = (p) => (whole ? p.loss : y.higher ? -p.y[y.key][0] : p.y[y.key][0]);
    const order = points.map((_, i) => i).sort((a, b) => cost(points[a]) - cost(points[b]) || loss(points[a]) - loss(points[b]));
    let best = Infinity;
    return order.filter((i) => loss(points[i]) < best && ((best = loss(points[i])), true));
  }

  /* The points of a study that have both axes, by rising place on the first. */
  function shown(study, x, y) {
    const there = study.points.filter((p) => x.key in p.x && y.key in p.y);
    return there.sort((a, b) => a.x[x.key][0] - b.x[x.key][0] || a.y[y.key][0] - b.y[y.key][0]);
  }

  function mark(point, shape) {
    return `<path class="mark${point.hollow ? " hollow" : ""}" d="${shape}"/>`;
  }

  function plot(study, x, y, width, height) {
    const points = shown(study, x, y);
    if (!points.length) return '<p class="none">No recipe has both of these values.</p>';
    const edge = { left: 58, right: 14, top: 12, bottom: 46 };
    const bands = study.bands.filter((b) => y.key in b.y);
    const h = scale(points.map((p) => p.x[x.key]), edge.left, width - edge.right);
    const v = scale([...points, ...bands].map((p) => p.y[y.key]), height - edge.bottom, edge.top, y.higher === false);
    const out = [];
    for (const t of h.ticks) {
      const at = short(h.place(t));
      out.push(`<line class="grid" x1="${at}" x2="${at}" y1="${edge.top}" y2="${height - edge.bottom}"/>`);
      out.push(`<text x="${at}" y="${height - edge.bottom + 16}" text-anchor="middle">${written(t)}</text>`);
    }
    for (const t of v.ticks) {
      const at = short(v.place(t));
      out.push(`<line class="grid" x1="${edge.left}" x2="${width - edge.right}" y1="${at}" y2="${at}"/>`);
      out.push(`<text x="${edge.left - 6}" y="${at}" dy="0.32em" text-anchor="end">${written(t)}</text>`);
    }
    for (const band of bands) {
      const [value, lo, hi] = band.y[y.key].map(v.place);
      out.push(`<g class="band ${band.role}">`);
      out.push(`<rect x="${edge.left}" width="${width - edge.left - edge.right}" y="${short(hi)}" height="${short(Math.max(0, lo - hi))}"/>`);
      out.push(`<line x1="${edge.left}" x2="${width - edge.right}" y1="${short(value)}" y2="${short(value)}"/>`);
      out.push("</g>");
    }
    const best = front(points, x, y);
    if (best.length > 1) {
      const line = best.map((i) => `${short(h.place(points[i].x[x.key][0]))},${short(v.place(points[i].y[y.key][0]))}`);
      out.push(`<polyline class="front" points="${line.join(" ")}"/>`);
    }
    points.forEach((p, i) => {
      const [cx, cy] = [h.place(p.x[x.key][0]), v.place(p.y[y.key][0])], [, xlo, xhi] = p.x[x.key], [, ylo, yhi] = p.y[y.key];
      const said = `${p.label}, ${p.what}: ${x.name} ${written(p.x[x.key][0])}, ${y.name} ${written(p.y[y.key][0])}, 95 % interval ${written(ylo)} to ${written(yhi)}`;
      out.push(`<g class="point ${kindClass(p)}" data-i="${i}" tabindex="${i ? -1 : 0}" role="img" aria-label="${esc(said)}">`);
      out.push(`<path class="bar" d="M${short(h.place(xlo))} ${short(cy)}H${short(h.place(xhi))}M${short(cx)} ${short(v.place(ylo))}V${short(v.place(yhi))}"/>`);
      out.push(`<g transform="translate(${short(cx)} ${short(cy)})"><circle class="reach" r="12"/>`);
      out.push(`${p.role === "baseline" ? '<circle class="ring" r="9.5"/>' : ""}${mark(p, SHAPES[p.kind])}</g></g>`);
    });
    for (const band of width < 500 ? [] : bands) {
      const at = `x="${width - edge.right - 3}" y="${short(v.place(band.y[y.key][0]) - 4)}"`;
      out.push(`<text class="name ${band.role}" ${at} text-anchor="end">${esc(band.label)}</text>`);
    }
    const better = (axis) => `${axis.name}, ${axis.higher === null ? "no side is better" : axis.higher ? "higher is better" : "lower is better"}`;
    out.push(`<text class="title" x="${(edge.left + width - edge.right) / 2}" y="${height - 8}" text-anchor="middle">${esc(better(x))}</text>`);
    const middle = (height - edge.bottom + edge.top) / 2;
    out.push(`<text class="title" transform="translate(13 ${middle}) rotate(-90)" text-anchor="middle">${esc(better(y))}</text>`);
    const name = `${y.name} against ${x.name}: ${points.length} recipes. Arrow keys go from one to the next.`;
    return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="group" aria-label="${esc(name)}">${out.join("")}</svg>`;
  }

  function kindClass(point) {
    return "k-" + point.kind.split(" ")[0];
  }

  function legend(points, bands) {
    const kinds = Object.keys(SHAPES).filter((kind) => points.some((p) => p.kind === kind));
    const item = (cls, inner, text) =>
      `<li><svg class="${cls}" viewBox="-11 -11 22 22" width="22" height="22" aria-hidden="true">${inner}</svg>${esc(text)}</li>`;
    const items = kinds.map((kind) => item("k-" + kind.split(" ")[0], mark({}, SHAPES[kind]), kind));
    if (points.some((p) => p.role === "control")) items.push(item("k-plain", mark({ hollow: true }, SHAPES["plain sampler"]), "equal-cost control"));
    if (points.some((p) => p.simulated)) items.push(item("k-precision", mark({ hollow: true }, SHAPES.precision), "simulated, not timed"));
    if (points.some((p) => p.role === "baseline")) items.push(item("", '<circle class="ring" r="9.5"/>', "baseline"));
    const line = '<line x1="-11" x2="11" y1="0" y2="0"/>';
    return [...items, ...bands.map((band) => item(band.role, line, band.label))].join("");
  }

  function detail(point) {
    const rows = point.said.map(([name, value, change]) => `<tr><th scope="row">${esc(name)}</th><td>${esc(value)}</td><td>${esc(change)}</td></tr>`);
    return `<p><strong>${esc(point.label)}</strong>, ${esc(point.what)}</p><div class="box" role="region" tabindex="0" aria-label="${esc(`Values of ${point.label}`)}"><table><caption><span>Its values, and differences to the baseline</span></caption>
<thead><tr><th scope="col">value</th><th scope="col">measured</th><th scope="col">difference</th></tr></thead><tbody>${rows.join("")}</tbody></table></div>`;
  }

  /* Cells: what has a number by it, then the others by their text, and nothing last, whichever way. */
  function compare(a, b, down) {
    const number = (c) => (c.v === "" ? NaN : Number(c.v)), [m, n] = [number(a), number(b)];
    const empty = (c) => c.text === "–" || c.text === "";
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    if (isNaN(m) !== isNaN(n)) return isNaN(m) - isNaN(n);
    const order = isNaN(m) ? a.text.localeCompare(b.text, "en", { numeric: true }) : m - n;
    return down ? -order : order;
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const cell = (row) => ({ v: row.cells[column].dataset.v || "", text: row.cells[column].textContent.trim() });
        const rows = [...table.tBodies[0].rows].sort((a, b) => compare(cell(a), cell(b), down));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        table.tBodies[0].append(...rows);
      });
    });
  }

  function interactive(section) {
    const study = JSON.parse(section.querySelector("script[type='application/json']").textContent);
    const [drawing, told, key] = ["drawing", "told", "key"].map((name) => section.querySelector(`[data-part=${name}]`));
    const selects = ["x", "y"].map((name) => section.querySelector(`select[data-axis=${name}]`));
    let points = [], last = null;
    const axes = () => ["x", "y"].map((name, i) => study[name].find((axis) => axis.key === selects[i].value));
    function draw() {
      const width = Math.max(260, Math.min(960, drawing.clientWidth)), [x, y] = axes();
      points = shown(study, x, y);
      const focused = drawing.contains(document.activeElement);
      drawing.innerHTML = plot(study, x, y, width, Math.round(Math.max(280, Math.min(480, 0.62 * width))));
      key.innerHTML = legend(points, study.bands.filter((band) => y.key in band.y));
      const there = points.indexOf(last);
      tell(there >= 0 ? there : Math.max(0, points.findIndex((p) => p.role === "baseline")), focused);
    }
    function tell(i, focus) {
      if (!points[i]) return;
      last = points[i];
      told.innerHTML = detail(last);
      drawing.querySelectorAll(".point").forEach((node) => {
        const own = Number(node.dataset.i) === i;
        node.setAttribute("tabindex", own ? 0 : -1);
        node.classList.toggle("chosen", own);
        if (own && focus) node.focus();
      });
    }
    const place = (event) => {
      const node = event.target.closest(".point");
      return node ? Number(node.dataset.i) : -1;
    };
    for (const kind of ["mouseover", "focusin", "click"])
      drawing.addEventListener(kind, (event) => place(event) >= 0 && points[place(event)] !== last && tell(place(event), false));
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key], at = place(event);
      const to = event.key === "Home" ? 0 : event.key === "End" ? points.length - 1 : at + step;
      if (at < 0 || !(to >= 0 && to < points.length)) return;
      event.preventDefault();
      tell(to, true);
    });
    selects.forEach((select) => select.addEventListener("change", draw));
    let width = 0;
    new ResizeObserver(() => drawing.clientWidth !== width && ((width = drawing.clientWidth), draw())).observe(drawing);
    draw();
  }

  function start(page) {
    page.querySelectorAll("table.sortable").forEach(sortable);
    page.querySelectorAll("[data-front]").forEach(interactive);
  }

  return { esc, scale, ticks, front, shown, plot, legend, detail, compare, start };
})();
if (typeof document === "undefined") module.exports = Report;
else Report.start(document);
