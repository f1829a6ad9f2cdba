"use strict";
// Unpacks what the page holds, draws its figures, and lets the reader pick spots and sort tables.

const byId = (id) => document.getElementById(id);
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const PUOR = ["#2d004b", "#542788", "#8073ac", "#b2abd2", "#d8daeb", "#f7f7f7", "#fee0b6", "#fdb863", "#e08214", "#b35806", "#7f3b08"];
const Z_LIMIT = 5;

/** What was packed, as a Response with text() and arrayBuffer(). */
function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate")));
}

const textOf = (id) => unpacked(byId(id).textContent).text();

const scale = (colours) => colours.map((colour, i) => [i / (colours.length - 1), colour]);

/** The colour of a number between 0 and 1, as [red, green, blue]. */
function colourOf(colours, part) {
  const place = Math.min(Math.max(part, 0), 1) * (colours.length - 1);
  const first = Math.min(Math.floor(place), colours.length - 2);
  const channel = (colour, i) => parseInt(colour.slice(1 + 2 * i, 3 + 2 * i), 16);
  return [0, 1, 2].map((i) => channel(colours[first], i) + (place - first) * (channel(colours[first + 1], i) - channel(colours[first], i)));
}

/** The spots of the page: images of each, and what is told of it. */
class Spots {
  static async from(packed) {
    const spots = Object.assign(new Spots(), packed);
    for (const name of ["data", "model", "z"]) {
      spots[name] = new Float32Array(await unpacked(packed[name]).arrayBuffer());
    }
    return spots;
  }

  image(name, i) {
    const from = this.offset[i];
    return from < 0 ? null : this[name].subarray(from, from + this.width[i] * this.height[i]);
  }

  /** The least and the largest number of photons in data and model. */
  range(i) {
    let low = Infinity, high = -Infinity;
    for (const name of ["data", "model"]) {
      for (const value of this.image(name, i)) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    return [Math.max(low, 0), Math.max(high, Math.max(low, 0) + 1)];
  }

  hkl(i) {
    return this.h[i] + " " + this.k[i] + " " + this.l[i];
  }

  title(i) {
    return "hkl " + this.hkl(i) + (this.panels > 1 ? ", panel " + this.panel[i] : "");
  }
}

const shown = (value, digits) => (value === null ? "–" : value.toFixed(digits));

function paint(canvas, image, width, height, part, colours) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  image.forEach((value, at) => {
    const colour = Number.isNaN(value) ? [190, 190, 190] : colourOf(colours, part(value));
    pixels.data.set([...colour, 255], 4 * at);
  });
  context.putImageData(pixels, 0, 0);
}

function drawGallery(spots, choose) {
  const gallery = byId("gallery");
  for (const kind of spots.kinds) {
    const heading = document.createElement("h3");
    heading.textContent = kind.title;
    gallery.append(heading);
    for (const i of kind.boxes) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "spot";
      const trio = document.createElement("span");
      trio.className = "trio";
      const [low, high] = spots.range(i).map(Math.sqrt);
      const photons = (value) => (Math.sqrt(Math.max(value, 0)) - low) / (high - low);
      const residual = (value) => 0.5 + value / (2 * Z_LIMIT);
      for (const [name, part, colours] of [["data", photons, VIRIDIS], ["model", photons, VIRIDIS], ["z", residual, PUOR]]) {
        const canvas = document.createElement("canvas");
        canvas.title = name;
        paint(canvas, spots.image(name, i), spots.width[i], spots.height[i], part, colours);
        trio.append(canvas);
      }
      const says = document.createElement("span");
      says.className = "says";
      const range = spots.range(i).map(Math.round);
      says.textContent = spots.title(i) + " · d " + shown(spots.d[i], 2) + " Å · CC " + shown(spots.cc[i], 3) + " · χ²/px "
        + shown(spots.chi2[i], 2) + " · " + range[0] + " to " + range[1] + " photons";
      button.append(trio, says);
      button.addEventListener("click", () => choose(i, true));
      gallery.append(button);
    }
  }
}

const ORDERS = {
  "brightest first": (s, i) => -s.snr[i],
  "highest χ²/px first": (s, i) => -s.chi2[i],
  "lowest CC first": (s, i) => s.cc[i],
  "largest |Z| first": (s, i) => -Math.abs(s.total[i]),
  "lowest resolution first": (s, i) => -s.d[i],
  "least weight first": (s, i) => s.weight[i],
};

function startPicker(spots) {
  const order = byId("order"), list = byId("spot"), find = byId("find");
  let places = [];
  for (const name of Object.keys(ORDERS)) order.add(new Option(name, name));
  const choose = (i, scroll) => {
    list.value = String(i);
    drawSpot(spots, i);
    if (scroll) byId("facts").scrollIntoView({ block: "center" });
  };
  const fill = () => {
    const wanted = find.value.replace(/[\s,]+/g, " ").trim();
    const key = (i) => { const value = ORDERS[order.value](spots, i); return Number.isFinite(value) ? value : Infinity; };
    places = spots.d.map((_, i) => i).filter((i) => spots.offset[i] >= 0 && spots.hkl(i).includes(wanted));
    places.sort((a, b) => key(a) - key(b));
    list.replaceChildren(...places.map((i) => new Option(spots.title(i) + ", d " + shown(spots.d[i], 2) + " Å, CC " + shown(spots.cc[i], 3), i)));
    if (places.length) choose(places[0], false);
  };
  const step = (by) => {
    const at = places.indexOf(Number(list.value)) + by;
    if (at >= 0 && at < places.length) choose(places[at], false);
  };
  order.addEventListener("change", fill);
  find.addEventListener("input", fill);
  list.addEventListener("change", () => choose(Number(list.value), false));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  fill();
  return choose;
}

function rowsOf(image, width, change) {
  const rows = [];
  for (let at = 0; at < image.length; at += width) {
    rows.push(Array.from(image.subarray(at, at + width), (value) => (Number.isNaN(value) ? null : change(value))));
  }
  return rows;
}

function drawSpot(spots, i) {
  const width = spots.width[i], height = spots.height[i];
  const x = Array.from({ length: width }, (_, n) => spots.x0[i] + n + 0.5);
  const y = Array.from({ length: height }, (_, n) => spots.y0[i] + n + 0.5);
  const [low, high] = spots.range(i);
  const same = (value) => value, root = (value) => Math.sqrt(Math.max(value, 0));
  const steps = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6].filter((n) => n >= low && n <= high);
  const ticks = steps.length > 1 ? steps.slice(-6) : [Math.round(low), Math.round(high)];
  const trace = (name, place, change, unit, more) => ({
    type: "heatmap", x, y, z: rowsOf(spots.image(name, i), width, change), text: rowsOf(spots.image(name, i), width, same),
    xaxis: "x" + place, yaxis: "y" + place, hoverongaps: false,
    hovertemplate: "fast %{x:.1f}, slow %{y:.1f}<br>" + unit + "<extra></extra>", ...more,
  });
  const photons = { zmin: root(low), zmax: root(high), colorscale: scale(VIRIDIS) };
  const bar = (place, title, more) => ({ x: place, len: 0.9, thickness: 12, xpad: 2, title: { text: title, side: "right", font: { size: 12 } }, ...more });
  const traces = [
    trace("data", "", root, "%{text:.1f} photons", { ...photons, showscale: false }),
    trace("model", "2", root, "%{text:.1f} photons", { ...photons, colorbar: bar(0.605, "photons", { tickvals: ticks.map(root), ticktext: ticks.map(String) }) }),
    trace("z", "3", same, "Z %{z:.2f}", { zmin: -Z_LIMIT, zmax: Z_LIMIT, colorscale: scale(PUOR), colorbar: bar(1.0, "Z", {}) }),
  ];
  const across = (from, to, place) => ({ domain: [from, to], anchor: "y" + place, constrain: "domain", showgrid: false, zeroline: false, nticks: 5, tickformat: "d" });
  const down = (place) => ({ autorange: "reversed", anchor: "x" + place, scaleanchor: "x" + place, constrain: "domain", showgrid: false, zeroline: false, nticks: 5, tickformat: "d" });
  const says = (text, at) => ({ text, x: at, y: 1.03, xref: "paper", yref: "paper", yanchor: "bottom", showarrow: false, font: { size: 13 } });
  const layout = {
    margin: { l: 48, r: 10, t: 34, b: 34 }, font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12 }, plot_bgcolor: "#bebebe",
    xaxis: across(0, 0.27, ""), xaxis2: across(0.33, 0.6, "2"), xaxis3: across(0.73, 1, "3"),
    yaxis: down(""), yaxis2: down("2"), yaxis3: down("3"),
    annotations: [says("data", 0.135), says("model", 0.465), says("Z", 0.865)],
  };
  byId("facts").textContent = spots.title(i) + " · d " + shown(spots.d[i], 3) + " Å · CC " + shown(spots.cc[i], 3) + " · χ²/px "
    + shown(spots.chi2[i], 2) + " · Z of the sum " + shown(spots.total[i], 1) + " · S/N " + shown(spots.snr[i], 1) + " · "
    + shown(spots.excitation[i], 2) + " widths from the Ewald sphere · mean weight " + shown(spots.weight[i], 2);
  Plotly.react("picked", traces, layout, CONFIG);
}

const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

async function drawFigures() {
  const library = document.createElement("script");
  library.textContent = await textOf("library");
  document.head.append(library);
  const payload = JSON.parse(await textOf("payload"));
  let choose = () => {};
  if (payload.spots) {
    const spots = await Spots.from(payload.spots);
    choose = startPicker(spots);
    drawGallery(spots, choose);
  }
  for (const [name, chart] of Object.entries(payload.charts)) {
    const plot = byId("chart-" + name);
    await Plotly.newPlot(plot, chart.traces, chart.layout, CONFIG);
    if (chart.picks) plot.on("plotly_click", (event) => {
      const box = event.points[0].customdata;
      if (Number.isInteger(box)) choose(box, true);
    });
  }
  // a page as wide as paper, for as long as it is printed
  window.addEventListener("beforeprint", () => document.querySelectorAll("div.plot").forEach((plot) => Plotly.Plots.resize(plot)));
  window.addEventListener("afterprint", () => document.querySelectorAll("div.plot").forEach((plot) => Plotly.Plots.resize(plot)));
}

function sortBy(table, column, heading) {
  const falling = heading.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].textContent.trim();
  const rows = Array.from(body.rows, (row) => [key(row), row]);
  const numbers = rows.every(([text]) => text === "" || text === "–" || Number.isFinite(Number(text)));
  const number = (text) => (text === "" || text === "–" ? Infinity : Number(text));
  rows.sort(([a], [b]) => (numbers ? number(a) - number(b) || 0 : a.localeCompare(b, "en", { numeric: true })));
  if (falling) rows.reverse();
  body.append(...rows.map(([, row]) => row));
}

document.querySelectorAll("table.sortable").forEach((table) =>
  table.querySelectorAll("th").forEach((heading, column) => heading.addEventListener("click", () => sortBy(table, column, heading))));

if (byId("library")) {
  drawFigures().then(() => { document.documentElement.dataset.state = "drawn"; }).catch((error) => {
    byId("trouble").hidden = false;
    byId("trouble").textContent = "The figures cannot be drawn (" + error + "): a browser of 2023 or later is needed. Words and tables are complete.";
    document.documentElement.dataset.state = "failed";
  });
} else {
  document.documentElement.dataset.state = "drawn";
}
