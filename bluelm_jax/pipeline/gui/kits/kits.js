// The three kits. Each maps element nodes to its own components and leaves the rest to PLAIN.

const WEUI = {
  button: (n) => mark(make(`<a class="weui-btn ${n.small ? 'weui-btn_mini' : ''} weui-btn_primary" style="background:${css(n.color)};${n.block ? '' : 'display:inline-block;width:auto;min-width:80px;margin:0'}">${n.text}</a>`), 'button', n),
  switch: (n) => mark(make(`<input class="weui-switch" type="checkbox" ${n.on ? 'checked' : ''} style="--weui-BRAND:${css(n.color)}">`), 'switch', {on: n.on}),
  checkbox: (n) => mark(make(`<i class="weui-icon-${n.on ? 'success' : 'circle'}" style="font-size:24px;${n.on ? `color:${css(n.color)}` : ''}"></i>`), 'checkbox', {on: n.on}),
  search: (n) => {
    const label = document.body.classList.contains('first') ? '' : `<label class="weui-search-bar__label"><i class="weui-icon-search"></i><span>${n.text}</span></label>`;
    const el = make(`<div class="weui-search-bar"><div class="weui-search-bar__form"><div class="weui-search-bar__box"><i class="weui-icon-search"></i><input class="weui-search-bar__input" placeholder="${n.text}"></div>${label}</div></div>`);
    mark(el.querySelector('.weui-search-bar__form'), 'search', n);
    return el;
  },
  input: (n) => mark(make(`<div class="weui-cell"><div class="weui-cell__hd"><label class="weui-label" style="width:90px">${n.text}</label></div><div class="weui-cell__bd"><input class="weui-input" placeholder="${n.text}"></div></div>`), 'input', n),
  item: (n) => mark(make(`<a class="weui-cell weui-cell_access"><div class="weui-cell__bd">${n.text}</div><div class="weui-cell__ft">${n.value}</div></a>`), 'item', n),
  slider: (n) => mark(make(`<div class="weui-slider" style="padding:15px 10px"><div class="weui-slider__inner"><div class="weui-slider__track" style="width:${n.value}%;background:${css(n.color)}"></div><div class="weui-slider__handler" style="left:${n.value}%"></div></div></div>`), 'slider', {}),
  progress: (n) => mark(make(`<div class="weui-progress"><div class="weui-progress__bar"><div class="weui-progress__inner-bar" style="width:${n.value}%;background:${css(n.color)}"></div></div></div>`), 'progress', {}),
  badge: (n) => mark(make(`<span class="weui-badge">${n.text}</span>`), 'badge', {text: n.text}),
};

// A component mounted into a holder; the marked element is the holder, shrunk to the component.
const vue = (name, props, slot, block) => {
  const el = make(`<span class="${block ? 'hold block' : 'hold'}"></span>`);
  const component = window.vant[name];
  window.Vue.createApp({render: () => window.Vue.h(component, props, slot === undefined ? undefined : {default: () => slot})}).mount(el);
  return el;
};

const VANT = {
  button: (n) => mark(vue('Button', {color: css(n.color), block: n.block, size: n.small ? 'small' : 'normal', round: n.text.length % 2 === 0}, n.text, n.block), 'button', n),
  switch: (n) => mark(vue('Switch', {modelValue: n.on, activeColor: css(n.color), size: '24px'}), 'switch', {on: n.on}),
  checkbox: (n) => mark(vue('Checkbox', {modelValue: n.on, checkedColor: css(n.color), shape: 'square'}), 'checkbox', {on: n.on}),
  radio: (n) => mark(vue('Checkbox', {modelValue: n.on, checkedColor: css(n.color)}), 'radio', {on: n.on}),
  search: (n) => mark(vue('Search', {modelValue: '', placeholder: n.text, shape: n.text.length > 2 ? 'round' : 'square'}, undefined, true), 'search', n),
  input: (n) => mark(vue('Field', {modelValue: '', label: n.text, placeholder: n.text}, undefined, true), 'input', n),
  item: (n) => mark(vue('Cell', {title: n.text, value: n.value, isLink: true}, undefined, true), 'item', n),
  slider: (n) => {
    const el = vue('Slider', {modelValue: n.value, activeColor: css(n.color)}, undefined, true);
    el.style.padding = '14px 10px';
    return mark(el, 'slider', {});
  },
  stepper: (n) => mark(vue('Stepper', {modelValue: n.value}), 'stepper', {text: String(n.value)}),
  progress: (n) => mark(vue('Progress', {percentage: n.value, color: css(n.color), strokeWidth: 8}, undefined, true), 'progress', {}),
  rate: (n) => mark(vue('Rate', {modelValue: n.value, color: css(n.color)}), 'rate', {text: String(n.value)}),
};

const react = (name, props, child, block) => {
  const el = make(`<span class="${block ? 'hold block' : 'hold'}"></span>`);
  window.ReactDOM.flushSync(() => window.ReactDOM.createRoot(el).render(window.React.createElement(name.split('.').reduce((o, k) => o[k], window.antdMobile), props, child)));
  return el;
};

const ANTD = {
  button: (n) => mark(react('Button', {block: n.block, size: n.small ? 'mini' : 'middle', style: {'--background-color': css(n.color), '--text-color': '#fff', '--border-color': css(n.color)}}, n.text, n.block), 'button', n),
  switch: (n) => mark(react('Switch', {checked: n.on, style: {'--checked-color': css(n.color)}}), 'switch', {on: n.on}),
  checkbox: (n) => mark(react('Checkbox', {checked: n.on, style: {'--adm-color-primary': css(n.color)}}), 'checkbox', {on: n.on}),
  radio: (n) => mark(react('Radio', {checked: n.on, style: {'--adm-color-primary': css(n.color)}}), 'radio', {on: n.on}),
  search: (n) => mark(react('SearchBar', {placeholder: n.text}, undefined, true), 'search', n),
  input: (n) => mark(react('List.Item', {prefix: n.text}, window.React.createElement(window.antdMobile.Input, {placeholder: n.text}), true), 'input', n),
  item: (n) => mark(react('List.Item', {extra: n.value, onClick: () => {}}, n.text, true), 'item', n),
  slider: (n) => mark(react('Slider', {value: n.value, style: {'--fill-color': css(n.color)}}, undefined, true), 'slider', {}),
  stepper: (n) => mark(react('Stepper', {value: n.value}), 'stepper', {text: String(n.value)}),
  progress: (n) => mark(react('ProgressBar', {percent: n.value, style: {'--fill-color': css(n.color)}}, undefined, true), 'progress', {}),
  rate: (n) => mark(react('Rate', {value: n.value, readOnly: true, style: {'--active-color': css(n.color), '--star-size': '22px'}}), 'rate', {text: String(n.value)}),
};

const KITS = {weui: WEUI, vant: VANT, antd: ANTD};
window.kit = (node) => (KITS[document.body.classList[0]]?.[node.t] ?? window.PLAIN[node.t])(node);
