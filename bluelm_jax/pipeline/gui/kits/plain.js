// Every element in plain HTML; the kits replace what they have themselves.

const ICONS = [
  '<circle cx="12" cy="12" r="9"/>', '<path d="M12 3l9 17H3z"/>', '<rect x="4" y="4" width="16" height="16" rx="3"/>',
  '<path d="M12 21C5 15 2 11 5 7c3-3 6-1 7 2 1-3 4-5 7-2 3 4 0 8-7 14z"/>', '<path d="M12 2l3 7h7l-6 4 3 8-7-5-7 5 3-8-6-4h7z"/>', '<path d="M9 3h6v6h6v6h-6v6H9v-6H3V9h6z"/>',
];
window.svg = (i, color, size) => `<svg viewBox="0 0 24 24" width="${size}" height="${size}" style="fill:${window.css(color)};display:block">${ICONS[i % ICONS.length]}</svg>`;

const hue = (seed, k) => `hsl(${(seed * 37 + k * 97) % 360} 55% ${40 + ((seed >> 3) + k * 13) % 35}%)`;
window.picture = (w, h, seed) => {
  const hill = `0,${h} 0,${h * 0.6} ${w * 0.3},${h * (0.3 + (seed % 30) / 100)} ${w * 0.6},${h * 0.7} ${w},${h * (0.35 + (seed % 17) / 60)} ${w},${h}`;
  return `<svg width="${w}" height="${h}" style="display:block;border-radius:6px;background:linear-gradient(${hue(seed, 1)},${hue(seed, 2)})"><circle cx="${w * (0.2 + (seed % 50) / 100)}" cy="${h * 0.3}" r="${h * 0.14}" fill="${hue(seed, 3)}"/><polygon points="${hill}" fill="${hue(seed, 4)}"/></svg>`;
};

window.PLAIN = {
  button: (n) => mark(make(`<button class="btn ${n.block ? 'block' : ''} ${n.small ? 'small' : ''}" style="background:${css(n.color)}">${n.text}</button>`), 'button', n),
  switch: (n) => mark(make(`<span class="switch ${n.on ? 'on' : ''}" style="${n.on ? `background:${css(n.color)}` : ''}"><i></i></span>`), 'switch', {on: n.on}),
  checkbox: (n) => mark(make(`<span class="check" style="${n.on ? `background:${css(n.color)};border-color:${css(n.color)}` : ''}">${n.on ? '✓' : ''}</span>`), 'checkbox', {on: n.on}),
  radio: (n) => mark(make(`<span class="check round" style="${n.on ? `border:6px solid ${css(n.color)}` : ''}"></span>`), 'radio', {on: n.on}),
  input: (n) => mark(make(`<div class="input">${n.text}</div>`), 'input', n),
  search: (n) => mark(make(`<div class="search"><svg viewBox="0 0 24 24" width="16" height="16" fill="none" stroke="currentColor" stroke-width="2.5"><circle cx="10" cy="10" r="6"/><path d="M15 15l6 6"/></svg><span>${n.text}</span></div>`), 'search', n),
  item: (n) => mark(make(`<div class="item"><span>${n.text}</span><span class="value">${n.value} ›</span></div>`), 'item', n),
  slider: (n) => mark(make(`<div class="slider"><b style="width:${n.value}%;background:${css(n.color)}"></b><i style="left:${n.value}%"></i></div>`), 'slider', {}),
  stepper: (n) => mark(make(`<span class="stepper"><b>−</b><em>${n.value}</em><b>+</b></span>`), 'stepper', {text: String(n.value)}),
  progress: (n) => mark(make(`<div class="progress"><b style="width:${n.value}%;background:${css(n.color)}"></b></div>`), 'progress', {}),
  rate: (n) => mark(make(`<span class="rate" style="color:${css(n.color)}">${'★'.repeat(n.value)}<i>${'★'.repeat(5 - n.value)}</i></span>`), 'rate', {text: String(n.value)}),
  avatar: (n) => mark(make(`<span class="avatar" style="width:${n.size}px;height:${n.size}px;border-radius:${n.round ? '50%' : '8px'};background:${hue(n.seed, 5)}"><svg viewBox="0 0 24 24" width="${n.size}" height="${n.size}" fill="${hue(n.seed, 2)}"><circle cx="12" cy="9" r="4.5"/><path d="M3 23c1-7 5-9 9-9s8 2 9 9z"/></svg></span>`), 'avatar', {}),
  image: (n) => mark(make(`<span class="image">${picture(n.w, n.h, n.seed)}</span>`), 'image', {}),
  icon: (n) => mark(make(`<span class="icon">${svg(n.icon, n.color, n.size)}</span>`), 'icon', {color: n.color}),
  fab: (n) => mark(make(`<span class="fab" style="background:${css(n.color)}">+</span>`), 'fab', {color: n.color}),
  badge: (n) => mark(make(`<span class="badge">${n.text}</span>`), 'badge', {text: n.text}),
  price: (n) => mark(make(`<span class="price">${n.text}</span>`), 'price', n),
  title: (n) => mark(make(`<span class="title">${n.text}</span>`), 'title', n),
  text: (n) => mark(make(`<span class="t">${n.text}</span>`), 'text', n),
  nav: (n) => {
    const el = make('<div class="nav"></div>');
    if (n.back) el.append(mark(make('<span class="back">‹</span>'), 'back', {}));
    el.append(mark(make(`<span class="title">${n.title}</span>`), 'title', {text: n.title}));
    if (n.action) el.append(mark(make('<span class="more">⋯</span>'), 'icon', {}));
    return el;
  },
  tabs: (n) => strip(n, 'tabs'),
  tabbar: (n) => strip(n, 'tabbar'),
};

const strip = (n, className) => {
  const el = make(`<div class="${className}"></div>`);
  n.labels.forEach((text, i) => {
    const on = i === n.active;
    const mark_ = className === 'tabbar' ? svg(i, on ? n.color : '', 20) : '';
    el.append(mark(make(`<div class="${on ? 'on' : ''}" style="${on ? `color:${css(n.color)};border-color:${css(n.color)}` : ''}">${mark_}<span>${text}</span></div>`), 'tab', {text, state: on ? 'selected' : ''}));
  });
  return el;
};
