// As much of a browser as the report's script asks for, so that the page can be used where there is none: parses the
// page, runs its script, and does what a test says (JSON on stdin: [action, ...]); prints what each action saw.
"use strict";
const fs = require("fs");
const VOID = new Set(["meta", "img", "br", "link", "input"]);
const NAMES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&#34;": '"' };
const decode = (text) => text.replace(/&(amp|lt|gt|quot|#39|#34);/g, (c) => NAMES[c]);

class Node {
  constructor(tag, attributes = {}) { Object.assign(this, { tag, attributes, children: [], parent: null, listeners: {}, text: null }); }
  getAttribute(name) { return name in this.attributes ? this.attributes[name] : null; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  removeAttribute(name) { delete this.attributes[name]; }
  get dataset() { return Object.fromEntries(Object.entries(this.attributes).filter(([k]) => k.startsWith("data-")).map(([k, v]) => [k.slice(5), v])); }
  get classes() { return (this.attributes.class || "").split(" ").filter(Boolean); }
  get classList() { return { toggle: (name, on) => (this.attributes.class = [...this.classes.filter((c) => c !== name), ...(on ? [name] : [])].join(" ")) }; }
  get textContent() { return this.text !== null ? this.text : this.children.map((c) => c.textContent).join(""); }
  get all() { return this.children.flatMap((c) => [c, ...c.all]); }
  get clientWidth() { return Node.width; }
  get value() { return this.chosen ?? this.querySelector("option").attributes.value; }
  set innerHTML(html) { this.children = []; parse(html, this); }
  matches(selector) {
    const [, tag, cls, key, value] = selector.match(/^([\w]*)(?:\.([\w-]+))?(?:\[([\w-]+)(?:='?([^'\]]*)'?)?\])?$/);
    return this.tag !== "#text" && (!tag || this.tag === tag) && (!cls || this.classes.includes(cls)) && (!key || (key in this.attributes && (value === undefined || this.attributes[key] === value)));
  }
  querySelectorAll(selector) { return this.all.filter((n) => n.matches(selector)); }
  querySelector(selector) { return this.querySelectorAll(selector)[0] || null; }
  closest(selector) { return this.matches(selector) ? this : this.parent && this.parent.closest(selector); }
  contains(node) { return node === this || this.all.includes(node); }
  append(...nodes) { for (const n of nodes) { if (n.parent) n.parent.children = n.parent.children.filter((c) => c !== n); n.parent = this; this.children.push(n); } }
  rowsOf(...tags) { return this.children.filter((c) => tags.includes(c.tag)); }
  get tHead() { return this.rowsOf("thead")[0]; }
  get tBodies() { return this.rowsOf("tbody"); }
  get rows() { return this.rowsOf("tr"); }
  get cells() { return this.rowsOf("th", "td"); }
  addEventListener(kind, act) { (this.listeners[kind] = this.listeners[kind] || []).push(act); }
  dispatch(event) { event.target = event.target || this; (this.listeners[event.type] || []).forEach((act) => act(event)); if (this.parent) this.parent.dispatch(event); }
  focus() { document.activeElement = this; this.dispatch({ type: "focusin" }); }
}

function parse(html, root) {
  let at = root;
  const token = /<!--.*?-->|<!DOCTYPE[^>]*>|<\/([\w-]+)\s*>|<([\w-]+)((?:\s+[\w:-]+(?:="[^"]*")?)*)\s*(\/?)>|[^<]+/gsy;
  while (token.lastIndex < html.length) {
    const from = token.lastIndex, m = token.exec(html);
    if (!m) throw new Error(`not well formed: ${html.slice(from, from + 60)}`);
    if (m[1]) {
      if (at.tag !== m[1]) throw new Error(`</${m[1]}> ends <${at.tag}>`);
      at = at.parent;
    } else if (m[2]) {
      const attributes = {};
      for (const [, key, , value] of m[3].matchAll(/([\w:-]+)(="([^"]*)")?/g)) attributes[key] = decode(value ?? "");
      const node = new Node(m[2], attributes);
      at.append(node);
      if (m[2] === "script" || m[2] === "style") {
        const end = html.indexOf(`</${m[2]}>`, token.lastIndex), text = new Node("#text");
        text.text = html.slice(token.lastIndex, end);
        node.append(text);
        token.lastIndex = end + m[2].length + 3;
      } else if (!VOID.has(m[2]) && !m[4]) at = node;
    } else if (!m[0].startsWith("<!")) {
      const text = new Node("#text");
      text.text = decode(m[0]);
      at.append(text);
    }
  }
  if (at !== root) throw new Error(`<${at.tag}> has no end`);
}

const [file, width] = process.argv.slice(2);
Node.width = Number(width);
const observers = [];
global.ResizeObserver = class { constructor(act) { this.act = act; } observe() { observers.push(this.act); } };
global.document = new Node("#document");
parse(fs.readFileSync(file, "utf8"), document);
const scripts = document.querySelectorAll("script").filter((s) => !s.attributes.type);
if (scripts.length !== 1) throw new Error(`${scripts.length} scripts`);
new Function("module", scripts[0].textContent)({});

const front = document.querySelector("[data-front]");
const seen = () => ({
  points: front.querySelectorAll(".point").map((p) => p.attributes["aria-label"]),
  told: (front.querySelector("[data-part=told]").querySelector("strong") || { textContent: null }).textContent,
  stops: front.querySelectorAll(".point").filter((p) => p.attributes.tabindex === "0").length,
  focus: document.activeElement && document.activeElement.attributes["aria-label"],
  names: front.querySelectorAll("text.name").map((t) => t.textContent),
  key: front.querySelector("[data-part=key]").children.map((item) => item.textContent),
  svg: front.querySelector("svg") && front.querySelector("svg").attributes.width,
});
const acts = {
  look: () => seen(),
  sort: (table, column) => {
    const own = document.querySelectorAll("table.sortable")[table], head = own.tHead.rows[0].cells[column];
    head.querySelector("button").dispatch({ type: "click" });
    return { sort: own.tHead.rows[0].cells.map((c) => c.getAttribute("aria-sort")), cells: own.tBodies[0].rows.map((r) => r.cells[column].textContent) };
  },
  choose: (axis, key) => {
    const select = front.querySelector(`select[data-axis=${axis}]`);
    select.chosen = key;
    select.dispatch({ type: "change" });
    return seen();
  },
  focus: (i) => (front.querySelectorAll(".point")[i].focus(), seen()),
  point: (i) => (front.querySelectorAll(".point")[i].dispatch({ type: "mouseover" }), seen()),
  press: (key) => (document.activeElement.dispatch({ type: "keydown", key, preventDefault() {} }), seen()),
  resize: (w) => ((Node.width = w), observers.forEach((act) => act()), seen()),
};
console.log(JSON.stringify(JSON.parse(fs.readFileSync(0, "utf8")).map(([name, ...rest]) => acts[name](...rest))));
