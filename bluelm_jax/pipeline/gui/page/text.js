// Which text belongs to an element, and showing the text of some elements alone.

window.bluelm = {targets: []};

{
  const SILENT = new Set(['SCRIPT', 'STYLE', 'NOSCRIPT', 'TEMPLATE', 'SELECT', 'TEXTAREA', 'OPTION', 'IFRAME', 'OBJECT', 'VIDEO', 'AUDIO', 'CANVAS',
    'defs', 'symbol', 'clipPath', 'mask', 'pattern', 'marker']);  // what SVG keeps to be drawn elsewhere
  const inner = (el) => (el.shadowRoot ?? el).childNodes;

  // Text nodes under an element in document order, through open shadow roots; only those that are drawn.
  window.bluelm.textNodes = (el, found = []) => {
    for (const node of el.nodeName === 'SLOT' && el.assignedNodes().length ? el.assignedNodes() : inner(el)) {
      if (node.nodeType === Node.TEXT_NODE) {
        if (node.data.trim() && rects(node).length) found.push(node);
      } else if (node.nodeType === Node.ELEMENT_NODE && !SILENT.has(node.nodeName) && node.checkVisibility({opacityProperty: true, visibilityProperty: true})) {
        window.bluelm.textNodes(node, found);
      }
    }
    return found;
  };

  const rects = window.bluelm.rects = (node) => {
    const range = new Range();
    range.selectNodeContents(node);
    return [...range.getClientRects()].filter((r) => r.width > 0 && r.height > 0);
  };

  // What an element shows as text: nodes of its own, and controls whose text is the browser's.
  window.bluelm.target = (el) => ({
    nodes: el.matches('input, select, textarea') ? [] : window.bluelm.textNodes(el),
    controls: [...(el.matches('input, select, textarea') ? [el] : []), ...el.querySelectorAll('input, select, textarea')],
  });

  // Important rules of a layer win over the page's own; inside the layer the more special one does.
  const RULES = `@layer bluelm {
    *, ::before, ::after, ::placeholder, ::marker { -webkit-text-fill-color: transparent !important; text-shadow: none !important; }
    :is(text, text *):not([data-bluelm-shown], :has([data-bluelm-shown])) { fill: transparent !important; stroke: transparent !important; }  /* of SVG, which highlights do not paint */
    [data-bluelm-shown], [data-bluelm-shown]::placeholder { -webkit-text-fill-color: currentcolor !important; }
  }
  ::highlight(bluelm) { -webkit-text-fill-color: currentcolor; }`;

  const roots = (root = document, found = [document]) => {
    for (const el of root.querySelectorAll('*')) {
      if (el.shadowRoot) roots(el.shadowRoot, (found.push(el.shadowRoot), found));
    }
    return found;
  };

  // Hides all text but that of the targets of these numbers; null gives the page back.
  window.bluelm.show = (numbers) => {
    for (const root of roots()) {
      root.adoptedStyleSheets = root.adoptedStyleSheets.filter((s) => !s.bluelm);
      for (const el of root.querySelectorAll('[data-bluelm-shown]')) el.removeAttribute('data-bluelm-shown');
      if (numbers) {
        const sheet = new CSSStyleSheet();
        sheet.replaceSync(RULES);
        sheet.bluelm = true;
        root.adoptedStyleSheets = [...root.adoptedStyleSheets, sheet];
      }
    }
    const highlight = new Highlight();
    for (const {nodes, controls} of (numbers ?? []).map((i) => window.bluelm.targets[i])) {
      for (const node of nodes) {
        const range = new Range();
        range.selectNodeContents(node);
        highlight.add(range);
        if (node.parentElement instanceof SVGElement) node.parentElement.setAttribute('data-bluelm-shown', '');
      }
      for (const control of controls) control.setAttribute('data-bluelm-shown', '');
    }
    CSS.highlights.set('bluelm', highlight);
  };

  // Numbers of the targets that show text.
  window.bluelm.withText = () => window.bluelm.targets.flatMap((t, i) => (t.nodes.length || t.controls.length ? [i] : []));
}
