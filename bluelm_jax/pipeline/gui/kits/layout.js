// Draws a node tree: layouts are plain boxes here, elements go to the kit. `window.kit(node)` returns a DOM
// element; `mark` puts the facts that extraction reads on it.

window.mark = (el, role, node = {}) => {
  el.dataset.role = role;
  el.dataset.text = node.text ?? '';
  el.dataset.color = node.color ?? '';
  el.dataset.state = node.on === undefined ? (node.state ?? '') : {switch: node.on ? 'on' : 'off'}[role] ?? (node.on ? 'checked' : '');
  return el;
};

window.make = (html) => {
  const holder = document.createElement('div');
  holder.innerHTML = html.trim();
  return holder.firstElementChild;
};

const box = (className, kids, style = {}) => {
  const el = document.createElement('div');
  el.className = className;
  Object.assign(el.style, style);
  for (const kid of kids ?? []) el.append(draw(kid));
  return el;
};

const LAYOUTS = {
  row: (n) => box('row', n.kids),
  col: (n) => box('col', n.kids),
  card: (n) => box('card', n.kids),
  center: (n) => box('center', n.kids),
  banner: (n) => box('banner', n.kids, {background: window.css(n.color)}),
  grid: (n) => box('grid', n.kids, {gridTemplateColumns: `repeat(${n.cols}, 1fr)`}),
  gap: (n) => box('', [], {height: `${n.h}px`}),
  abs: (n) => box('abs', n.kids, n.style),
  line: (n) => {
    const el = box('line', []);
    const end = draw(n.end);
    end.dataset.label = n.text;
    el.append(mark(make(`<span class="t">${n.text}</span>`), 'text', {text: n.text}), end);
    return el;
  },
  rail: (n) => {
    const el = box('rail', []);
    n.labels.forEach((text, i) => {
      const on = i === n.active;
      el.append(mark(make(`<div class="${on ? 'on' : ''}" style="${on ? `color:${window.css(n.color)}` : ''}">${text}</div>`), 'tab', {text, state: on ? 'selected' : ''}));
    });
    return el;
  },
};

const draw = (node) => (LAYOUTS[node.t] ?? window.kit)(node);

window.drawPage = (spec) => {
  const root = document.getElementById('root');
  root.replaceChildren();
  document.body.className = `${spec.kit} ${spec.dark ? 'dark' : 'light'}${spec.first ? ' first' : ''}`;
  const dark = spec.dark && !spec.first;  // the kits' own
  document.documentElement.classList.toggle('van-theme-dark', dark);
  document.documentElement.dataset.prefersColorScheme = dark ? 'dark' : 'light';
  document.body.dataset.weuiTheme = dark ? 'dark' : 'light';
  document.body.style.fontSize = `${spec.font}px`;
  window.palette = spec.colors;
  root.style.padding = `${spec.pad}px`;
  for (const node of spec.nodes) root.append(draw(node));
};

window.css = (name) => window.palette[name] ?? '#8a8f99';

// Everything marked that a user can see: inside the screen, uncovered at its centre, at least 8 px a side.
window.bluelm.elements = () => {
  const found = [];
  window.bluelm.targets = [];
  for (const el of document.querySelectorAll('[data-role]')) {
    const b = el.getBoundingClientRect();
    const l = Math.max(b.left, 0), t = Math.max(b.top, 0), r = Math.min(b.right, innerWidth), m = Math.min(b.bottom, innerHeight);
    if (r - l < 8 || m - t < 8 || b.bottom > innerHeight + 2) continue;
    const top = document.elementFromPoint((l + r) / 2, (t + m) / 2);
    if (!top || !(el.contains(top) || top.contains(el) && !top.dataset.role && top.closest('[data-role]') === null)) continue;
    const label = el.dataset.label ? {label: el.dataset.label} : {};
    found.push({role: el.dataset.role, text: el.dataset.text, color: el.dataset.color, state: el.dataset.state, box: [l / innerWidth, t / innerHeight, r / innerWidth, m / innerHeight], ...label});
    window.bluelm.targets.push(el.dataset.text ? window.bluelm.target(el) : {nodes: [], controls: []});
  }
  return found;
};
