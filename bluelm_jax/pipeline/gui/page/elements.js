// The elements of any page that a user can see now, with Chromium's own roles and accessible names.

{
  const ROLES = {
    button: 'button', link: 'link', checkbox: 'checkbox', menuitemcheckbox: 'checkbox', radio: 'radio', menuitemradio: 'radio', switch: 'switch', textbox: 'input',
    searchbox: 'search', spinbutton: 'stepper', tab: 'tab', slider: 'slider', progressbar: 'progress', meter: 'progress', image: 'image', img: 'image',
    heading: 'title', menuitem: 'item', option: 'item', treeitem: 'item'};
  const INLINE = new Set(['inline', 'contents', 'ruby', 'ruby-text']);
  const TOUCHED = new Set(['input', 'select', 'search', 'checkbox', 'radio', 'switch', 'button', 'link']);  // even inside another element
  const LEAST = 6;  // CSS pixels a side
  const INVISIBLE = /[\u200b-\u200f\u2028-\u202f\ue000-\uf8ff\ufeff]/g;  // formatting, and icons of fonts

  const clean = (text) => text.replace(INVISIBLE, '').replace(/\s+/g, ' ').trim();
  const parent = (el) => el.assignedSlot ?? el.parentElement ?? el.getRootNode().host ?? null;
  const shown = (el) => el.checkVisibility({opacityProperty: true, visibilityProperty: true});

  const walk = (root, found = []) => {
    for (const el of root.children) {
      found.push(el);
      if (el.shadowRoot) walk(el.shadowRoot, found);
      walk(el, found);
    }
    return found;
  };

  const role = (el) => {
    if (el.nodeName !== 'svg' && el.closest('svg, foreignObject')?.nodeName === 'svg') return '';
    if (el.nodeName === 'SELECT') return el.multiple || el.size > 1 ? '' : 'select';
    if (el.nodeName === 'OPTION') return '';
    if (el.nodeName === 'SUMMARY') return 'item';
    if (el.nodeName === 'INPUT' && el.type === 'hidden') return '';
    const found = el.computedRole;
    if (found === 'combobox') return el.matches('input, textarea') ? 'input' : 'select';
    return ROLES[found] ?? (el.nodeName === 'INPUT' ? (el.type === 'file' || el.type === 'color' ? 'button' : 'input') : '');
  };

  // A drawn control may stand for an input that is not seen: the input's label is then what a user touches.
  const body = (el) => {
    const box = el.getBoundingClientRect();
    return shown(el) && box.width >= LEAST && box.height >= LEAST ? el : el.matches('input[type=checkbox], input[type=radio]') ? [...(el.labels ?? [])].find(shown) ?? el : el;
  };

  const rectOf = (boxes) => boxes.reduce((a, b) => ({left: Math.min(a.left, b.left), top: Math.min(a.top, b.top), right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom)}));
  const meet = (a, b) => ({left: Math.max(a.left, b.left), top: Math.max(a.top, b.top), right: Math.min(a.right, b.right), bottom: Math.min(a.bottom, b.bottom)});
  const area = (r) => Math.max(r.right - r.left, 0) * Math.max(r.bottom - r.top, 0);

  // What ancestors that clip their overflow leave of a rectangle.
  const clipped = (el, rect) => {
    let style = getComputedStyle(el);
    for (let up = parent(el); up && up !== document.body && up !== document.documentElement; up = parent(up)) {
      if (style.position === 'fixed') break;
      const s = getComputedStyle(up);
      if (style.position === 'absolute' && s.position === 'static' && s.transform === 'none') continue;
      const outer = up.nodeName === 'svg' && !up.ownerSVGElement;  // clips even as it stands in a line; the box of one inside it is of what it holds
      if (s.overflow !== 'visible' && (outer || !INLINE.has(s.display) && !(up instanceof SVGElement))) rect = meet(rect, up.getBoundingClientRect());
      style = s;
    }
    return rect;
  };

  const hit = (x, y) => {
    let at = document.elementFromPoint(x, y);
    for (let deeper = at; deeper?.shadowRoot && (deeper = deeper.shadowRoot.elementFromPoint(x, y)) && deeper !== at;) at = deeper;
    return at;
  };
  const holds = (el, other) => {
    for (let up = other; up; up = parent(up)) if (up === el) return true;
    return false;
  };

  // Nothing lies over the middle, nor over two of four other points.
  const uncovered = (el, r) => {
    const at = (x, y) => holds(el, hit(r.left + x * (r.right - r.left), r.top + y * (r.bottom - r.top)));
    return at(0.5, 0.5) && [at(0.1, 0.25), at(0.9, 0.25), at(0.1, 0.75), at(0.9, 0.75)].filter(Boolean).length >= 3;
  };

  const block = (el) => {
    while (parent(el) && INLINE.has(getComputedStyle(el).display)) el = parent(el);
    return el;
  };

  // The text of nodes as it is drawn; what stands in different blocks is set apart.
  const textOf = (nodes) => {
    let text = '', last = null;
    for (const node of nodes) {
      const style = getComputedStyle(node.parentElement), home = block(node.parentElement);
      const part = {uppercase: (s) => s.toUpperCase(), lowercase: (s) => s.toLowerCase(), capitalize: (s) => s.replace(/(^|\s)\p{L}/gu, (c) => c.toUpperCase())}[style.textTransform]?.(node.data) ?? node.data;
      const apart = last && last !== home || node.previousSibling?.nodeName === 'BR' || node.parentElement.matches('tspan[x], tspan[y]');
      text += (apart ? ' ' : '') + part;
      last = home;
    }
    return clean(text);
  };

  const aria = (el, name) => el.getAttribute(`aria-${name}`);
  const state = (el, kind) => {
    const checked = el.indeterminate || aria(el, 'checked') === 'mixed' ? 'mixed' : el.matches('input') ? el.checked : aria(el, 'checked') === 'true';
    if (kind === 'switch') return checked ? 'on' : 'off';
    if (kind === 'checkbox' || kind === 'radio') return checked === 'mixed' ? 'mixed' : checked ? 'checked' : '';
    if (aria(el, 'selected') === 'true' || (aria(el, 'current') ?? 'false') !== 'false') return 'selected';
    const open = el.nodeName === 'SUMMARY' && el.parentElement?.nodeName === 'DETAILS' ? String(el.parentElement.open) : aria(el, 'expanded');
    if (open === 'true' || open === 'false') return open === 'true' ? 'expanded' : 'collapsed';
    if (aria(el, 'pressed') === 'true' || aria(el, 'pressed') === 'false') return aria(el, 'pressed') === 'true' ? 'on' : 'off';
    return '';
  };
  const value = (el, kind) => {
    if (kind === 'select' && el.selectedOptions) return clean(el.selectedOptions[0]?.text ?? '');
    if (el.type === 'password') return null;
    if (kind === 'input' || kind === 'search' || kind === 'stepper') return el.value === undefined ? null : clean(el.value);
    if (kind === 'slider' || kind === 'progress') return aria(el, 'valuetext') ?? aria(el, 'valuenow') ?? (el.value === undefined || el.getAttribute('value') === null && el.nodeName !== 'INPUT' ? null : String(el.value));
    return null;
  };
  // What the browser draws in a control by itself.
  const written = (el, kind) => {
    if (el.nodeName === 'SELECT') return value(el, kind);
    if (el.matches('input[type=submit], input[type=button], input[type=reset]')) return clean(el.value);
    if (!el.matches('input, textarea') || el.matches('[type=checkbox], [type=radio], [type=range], [type=color], [type=file], [type=image]')) return null;
    return el.type === 'password' ? (el.value ? '' : clean(el.placeholder)) : clean(el.value || el.placeholder);
  };

  // What lets touches through still covers.
  const touching = (f) => {
    const free = new CSSStyleSheet();
    free.replaceSync('*, ::before, ::after { pointer-events: auto !important; }');
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, free];
    try {
      return f();
    } finally {
      document.adoptedStyleSheets = document.adoptedStyleSheets.filter((s) => s !== free);
    }
  };

  // Where this document lies in the picture: CSS pixels to its left and top, those of the picture, and the part of the document that is seen.
  const alone = () => ({left: 0, top: 0, width: innerWidth, height: innerHeight, screen: {left: 0, top: 0, right: innerWidth, bottom: innerHeight}});
  const share = (r, at) => [(at.left + r.left) / at.width, (at.top + r.top) / at.height, (at.left + r.right) / at.width, (at.top + r.bottom) / at.height];

  // The same of the document in a frame, with its size here, and the box of the part that is seen; null if none is.
  window.bluelm.frame = (el, at) => {
    const {left, top, width, height, screen} = at ?? alone(), box = el.getBoundingClientRect(), style = getComputedStyle(el);
    const edge = (side) => parseFloat(style[`border${side}Width`]) + parseFloat(style[`padding${side}`]);
    const whole = {left: box.left + edge('Left'), top: box.top + edge('Top'), right: box.right - edge('Right'), bottom: box.bottom - edge('Bottom')};
    const r = meet(clipped(el, whole), screen);
    if (!shown(el) || r.right - r.left < LEAST || r.bottom - r.top < LEAST) return null;
    const seen = {left: r.left - whole.left, top: r.top - whole.top, right: r.right - whole.left, bottom: r.bottom - whole.top};
    return {left: left + whole.left, top: top + whole.top, width, height, screen: seen, size: [whole.right - whole.left, whole.bottom - whole.top], box: share(r, {left, top, width, height})};
  };

  // Which boxes (shares of the picture) in a frame nothing outside of it lies over.
  window.bluelm.open = (el, at, boxes) => touching(() => boxes.map(([l, t, r, b]) => {
    const {left, top, width, height} = at ?? alone();
    return uncovered(el, {left: l * width - left, top: t * height - top, right: r * width - left, bottom: b * height - top});
  }));

  // {elements, above, below, height, title, language}: above and below are [role, name] of what scrolling would show. In a frame
  // `at` says where it is; null if it is drawn smaller, larger or turned.
  window.bluelm.elements = (at) => touching(() => {
    if (at && (Math.abs(at.size[0] - innerWidth) > 1 || Math.abs(at.size[1] - innerHeight) > 1)) return null;
    const place = at ?? alone(), screen = place.screen, found = [], targets = [], above = [], below = [], owners = new Map(), parting = [];
    const insideOwner = (el) => {
      for (let up = parent(el); up; up = parent(up)) if (owners.has(up) && owners.get(up) !== 'title') return true;
      return false;
    };

    const add = (el, whole, facts, target) => {
      const inside = clipped(el, whole), rect = meet(inside, screen), name = facts.label ?? facts.text;
      if (area(inside) > 0 && name && ['title', 'link', 'button'].includes(facts.role) && !(area(rect) > 0)) {
        if (inside.bottom <= 0 && inside.bottom + scrollY > 0) above.push([facts.role, name]);
        if (inside.top >= innerHeight) below.push([facts.role, name]);
      }
      if (rect.right - rect.left < LEAST || rect.bottom - rect.top < LEAST || area(rect) < 0.5 * area(whole) || !uncovered(el, rect)) return;
      found.push({...facts, box: share(rect, place), ...(area(rect) < 0.98 * area(whole) ? {cut: true} : {})});
      targets.push(facts.text ? target : {nodes: [], controls: []});
    };

    for (const el of walk(document)) {
      const kind = role(el);
      if (!kind || !TOUCHED.has(kind) && insideOwner(el)) continue;
      const drawn = body(el);
      if (!shown(drawn)) continue;
      const target = window.bluelm.target(drawn), text = written(el, kind) ?? (el.nodeName === 'svg' ? '' : textOf(target.nodes));
      if (kind === 'title' && !text) continue;
      if (el.nodeName !== 'svg') owners.set(el, kind).set(drawn, kind);  // the words of a drawing stand for themselves
      if (kind !== 'link') parting.push(el);
      const name = clean(el.computedName ?? ''), held = value(el, kind);
      const boxes = kind === 'title' ? target.nodes.flatMap(window.bluelm.rects) : [drawn.getBoundingClientRect()];
      add(drawn, rectOf(boxes), {
        role: kind, text, color: '', state: state(el, kind), ...(name && name !== text ? {label: name} : {}), ...(held === null ? {} : {value: held}),
        ...(el.matches(':disabled') || aria(el, 'disabled') === 'true' ? {disabled: true} : {})}, target);
    }

    // Text that belongs to no such element, by blocks, and parted by what stands in it; a link inside a line belongs to both.
    const runs = [], follows = (a, b) => a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING;
    let next = 0;  // of `parting`, which is in the order of the document as the text is
    const between = (a, b) => {
      while (next < parting.length && !follows(a, parting[next])) next++;
      return next < parting.length && follows(parting[next], b);
    };
    for (const node of window.bluelm.textNodes(document.body)) {
      let home = null, owned = false;
      for (let up = node.parentElement; up; up = parent(up)) {
        const inline = INLINE.has(getComputedStyle(up).display);
        if (owners.has(up) && !(owners.get(up) === 'link' && inline && !home)) owned = true;
        if (!inline) home ??= up;
      }
      if (!home || owned) continue;
      const last = runs.at(-1);
      if (last?.home === home && !between(last.nodes.at(-1), node)) last.nodes.push(node);
      else runs.push({home, nodes: [node]});
    }
    const links = new Set(found.filter((e) => e.role === 'link').map((e) => e.text));
    for (const {home, nodes} of runs) {
      const text = textOf(nodes);
      if (text && !(links.has(text) && nodes.every((n) => n.parentElement.closest('a, [role=link]')))) {
        add(home, rectOf(nodes.flatMap(window.bluelm.rects)), {role: 'text', text, color: '', state: ''}, {nodes, controls: []});
      }
    }
    window.bluelm.targets = targets;
    return {elements: found, above: above.slice(-20), below: below.slice(0, 20), height: document.documentElement.scrollHeight, title: clean(document.title), language: document.documentElement.lang};
  });
}
