// Page layouts. Each is a function (r: random, c: content, p: paint) -> list of nodes; a layout belongs to one split only.
// Nodes are layouts {t: 'row' | 'col' | 'grid' | 'card' | 'gap' | 'abs' ...} or elements {t: role, ...} that a kit draws.
{
const gap = (r, max = 60) => ({t: 'gap', h: r.int(4, max)});
const row = (kids, more = {}) => ({t: 'row', kids, ...more});
const col = (kids, more = {}) => ({t: 'col', kids, ...more});
const card = (kids, more = {}) => ({t: 'card', kids, ...more});
const grid = (cols, kids) => ({t: 'grid', cols, kids});
const abs = (style, kids) => ({t: 'abs', style, kids});
const button = (r, c, p, more = {}) => ({t: 'button', text: c.one('action'), color: p.any(), block: r.chance(0.5), ...more});
const nav = (r, c) => ({t: 'nav', title: c.one('page'), back: r.chance(0.7), action: r.chance(0.4), color: ''});
const image = (r, w, h) => ({t: 'image', w, h, seed: r.int(0, 1e6)});
const option = (r, c, p) => ({t: 'line', text: c.one('option'), end: {t: 'switch', on: r.chance(0.5), color: p.accent}});
const item = (r, c) => ({t: 'item', text: c.one('option'), value: r.chance(0.4) ? c.one('thing') : ''});
const tabs = (r, c, p) => ({t: 'tabs', labels: c.several('tab', r.int(2, 4)), active: 0, color: p.accent});
const bar = (r, c, p) => ({t: 'tabbar', labels: c.several('tab', r.int(3, 5)), active: r.int(0, 2), color: p.accent});
const search = (c) => ({t: 'search', text: c.search});
const text = (r, c) => ({t: 'text', text: c.one('text')});
const title = (r, c) => ({t: 'title', text: c.one('page')});
const person = (r, c) => ({t: 'avatar', seed: r.int(0, 1e6), size: r.int(36, 64), round: r.chance(0.6)});
const choice = (r, c, p) => ({t: 'line', text: c.one('option'), end: {t: r.pick(['checkbox', 'radio']), on: r.chance(0.5), color: p.accent}});
const slider = (r, c, p) => ({t: 'slider', value: r.int(15, 85), color: p.accent});
const stepper = (r, c) => ({t: 'line', text: c.one('thing'), end: {t: 'stepper', value: r.int(1, 9)}});
const product = (r, c, p, w) => card([image(r, w, r.int(60, 110)), {t: 'text', text: c.one('thing')}, row([{t: 'price', text: c.amount()}, ...(r.chance(0.5) ? [button(r, c, p, {small: true, block: false})] : [])])]);
const fab = (r, p, where) => abs(where, [{t: 'fab', color: p.any(), icon: r.int(0, 5)}]);
const icon = (r, p) => ({t: 'icon', icon: r.int(0, 5), color: p.any(), size: r.int(26, 44)});

// Pieces that fill free space with something random.
const PIECES = [
  (r, c, p) => option(r, c, p), (r, c) => item(r, c), (r, c, p) => choice(r, c, p), (r, c, p) => slider(r, c, p), (r, c) => stepper(r, c),
  (r, c, p) => row([button(r, c, p, {block: false}), button(r, c, p, {block: false})]), (r, c, p) => button(r, c, p), (r, c) => search(c),
  (r, c) => ({t: 'input', text: c.one('field')}), (r, c) => text(r, c), (r, c) => row([person(r, c), text(r, c)]),
  (r, c, p) => ({t: 'progress', value: r.int(10, 90), color: p.accent}), (r, c, p) => ({t: 'rate', value: r.int(1, 5), color: p.accent}),
  (r) => image(r, r.int(80, 328), r.int(50, 140)), (r, c, p) => grid(r.int(3, 5), Array.from({length: r.int(3, 5)}, () => icon(r, p))),
  (r, c, p) => tabs(r, c, p), (r, c) => row([title(r, c), {t: 'badge', text: String(r.int(1, 99)), color: 'red'}]), (r, c, p) => row([icon(r, p), text(r, c)]),
];
const pieces = (r, c, p, n) => Array.from({length: n}, () => r.pick(PIECES)(r, c, p));

const TRAIN = {
  settings: (r, c, p) => [nav(r, c), gap(r), card(Array.from({length: r.int(3, 7)}, () => r.pick([option, item, option, choice])(r, c, p))), gap(r), ...(r.chance(0.6) ? [button(r, c, p)] : []), ...pieces(r, c, p, r.int(0, 2))],
  form: (r, c, p) => [nav(r, c), gap(r, 90), card(c.several('field', r.int(2, 5)).map((f) => ({t: 'input', text: f}))), gap(r), ...(r.chance(0.5) ? [choice(r, c, p)] : []), button(r, c, p, {block: true}), gap(r, 30), ...(r.chance(0.5) ? [button(r, c, p)] : [])],
  login: (r, c, p) => [gap(r, 120), {t: 'center', kids: [person(r, c)]}, title(r, c), gap(r, 50), {t: 'input', text: c.one('field')}, {t: 'input', text: c.one('field')}, gap(r, 40), button(r, c, p, {block: true}), gap(r, 40), row([icon(r, p), icon(r, p), icon(r, p)])],
  products: (r, c, p) => [r.chance(0.5) ? search(c) : nav(r, c), ...(r.chance(0.5) ? [tabs(r, c, p)] : []), gap(r, 30), grid(2, Array.from({length: 4}, () => product(r, c, p, 150))), bar(r, c, p)],
  shop: (r, c, p) => [nav(r, c), gap(r, 40), ...Array.from({length: r.int(2, 4)}, () => card([row([image(r, r.int(60, 100), r.int(60, 90)), col([{t: 'text', text: c.one('thing')}, {t: 'price', text: c.amount()}, r.chance(0.5) ? {t: 'stepper', value: r.int(1, 9)} : button(r, c, p, {small: true, block: false})])])])), gap(r, 30), button(r, c, p)],
  chats: (r, c, p) => [r.chance(0.5) ? nav(r, c) : search(c), ...Array.from({length: r.int(3, 7)}, () => row([person(r, c), col([{t: 'text', text: c.one('person')}, text(r, c)]), ...(r.chance(0.4) ? [{t: 'badge', text: String(r.int(1, 20)), color: 'red'}] : [])])), bar(r, c, p)],
  profile: (r, c, p) => [gap(r, 80), row(r.shuffle([person(r, c), col([title(r, c), text(r, c)]), button(r, c, p, {small: true, block: false})])), gap(r, 40), grid(r.int(3, 4), Array.from({length: r.int(3, 8)}, () => icon(r, p))), gap(r, 40), card(Array.from({length: r.int(1, 4)}, () => item(r, c)))],
  feed: (r, c, p) => [tabs(r, c, p), ...Array.from({length: 2}, () => card([row([person(r, c), {t: 'text', text: c.one('person')}]), text(r, c), image(r, r.int(160, 310), r.int(70, 130)), row([icon(r, p), icon(r, p), button(r, c, p, {small: true, block: false})])])), bar(r, c, p)],
  player: (r, c, p) => [nav(r, c), gap(r, 70), {t: 'center', kids: [image(r, r.int(140, 260), r.int(130, 240))]}, gap(r), title(r, c), slider(r, c, p), gap(r), row([icon(r, p), icon(r, p), icon(r, p)]), gap(r), ...(r.chance(0.5) ? [{t: 'rate', value: r.int(1, 5), color: p.accent}] : [])],
  dashboard: (r, c, p) => [title(r, c), gap(r, 40), grid(2, Array.from({length: r.int(2, 6)}, () => card(r.pick([[title(r, c), {t: 'progress', value: r.int(10, 90), color: p.accent}], [icon(r, p), text(r, c)], [option(r, c, p)]])))), gap(r), ...pieces(r, c, p, 2)],
  floating: (r, c, p) => [nav(r, c), ...pieces(r, c, p, r.int(4, 7)), fab(r, p, {right: `${r.int(12, 260)}px`, bottom: `${r.int(20, 420)}px`})],
  mixed: (r, c, p) => r.shuffle([gap(r, 120), gap(r, 120), ...pieces(r, c, p, r.int(5, 9))]),
  columns: (r, c, p) => [...(r.chance(0.5) ? [nav(r, c)] : [gap(r, 100)]), row([col([button(r, c, p, {block: false}), gap(r), icon(r, p), gap(r), person(r, c)]), col(pieces(r, c, p, r.int(3, 5)))]), gap(r), ...pieces(r, c, p, 2)],
  stack: (r, c, p) => [gap(r, 260), ...r.shuffle([button(r, c, p), button(r, c, p), option(r, c, p), search(c), tabs(r, c, p), slider(r, c, p)]).slice(0, r.int(3, 5))],
};

const SELECT = {
  player_list: (r, c, p) => [row([image(r, 110, 110), col([title(r, c), text(r, c), button(r, c, p, {small: true, block: false})])]), slider(r, c, p), ...Array.from({length: r.int(3, 5)}, () => row([icon(r, p), {t: 'text', text: c.one('thing')}, {t: 'checkbox', on: r.chance(0.5), color: p.accent}])), bar(r, c, p)],
  booking: (r, c, p) => [nav(r, c), image(r, 328, r.int(110, 190)), gap(r, 30), row([title(r, c), {t: 'price', text: c.amount()}]), {t: 'rate', value: r.int(1, 5), color: p.accent}, stepper(r, c), option(r, c, p), abs({left: '16px', right: '16px', bottom: '18px'}, [button(r, c, p, {block: true})])],
  dialog: (r, c, p) => [nav(r, c), gap(r, 160), {t: 'center', kids: [card([title(r, c), text(r, c), {t: 'input', text: c.one('field')}, row(r.shuffle([button(r, c, p, {block: false}), button(r, c, p, {block: false})]))])]}, gap(r, 80), choice(r, c, p)],
};

const TEST = {
  result: (r, c, p) => [gap(r, 90), {t: 'center', kids: [icon(r, p)]}, title(r, c), text(r, c), gap(r, 140), button(r, c, p, {block: true}), gap(r, 16), ...(r.chance(0.7) ? [button(r, c, p, {block: true})] : []), gap(r, 60), item(r, c)],
  user_centre: (r, c, p) => [{t: 'banner', color: p.accent, kids: [row([person(r, c), col([title(r, c), {t: 'text', text: c.one('person')}])])]}, card([grid(4, Array.from({length: 4}, () => icon(r, p)))]), gap(r, 20), card([item(r, c), option(r, c, p), ...(r.chance(0.5) ? [stepper(r, c)] : []), item(r, c)]), gap(r, 30), ...(r.chance(0.6) ? [button(r, c, p)] : []), bar(r, c, p)],
  map_sheet: (r, c, p) => [abs({left: '0', top: '0'}, [image(r, 360, r.int(330, 420))]), abs({left: '12px', right: '12px', top: `${r.int(12, 60)}px`}, [search(c)]), fab(r, p, {right: '16px', top: `${r.int(160, 280)}px`}), abs({left: '0', right: '0', bottom: '0'}, [card([title(r, c), text(r, c), slider(r, c, p), row(r.shuffle([button(r, c, p, {block: false}), icon(r, p)])), ...(r.chance(0.5) ? [option(r, c, p)] : [])])])],
  side_rail: (r, c, p) => [search(c), row([{t: 'rail', labels: c.several('tab', r.int(4, 6)), active: r.int(0, 3), color: p.accent}, col(Array.from({length: r.int(2, 3)}, () => card([row([image(r, 64, 64), col([{t: 'text', text: c.one('thing')}, {t: 'price', text: c.amount()}, button(r, c, p, {small: true, block: false})])])])))])],
  checkout: (r, c, p) => [nav(r, c), card([row([icon(r, p), text(r, c)])]), card([choice(r, c, p), choice(r, c, p), ...(r.chance(0.5) ? [choice(r, c, p)] : [])]), card([stepper(r, c), {t: 'input', text: c.one('field')}, option(r, c, p)]), abs({left: '0', right: '0', bottom: '0'}, [card([row([{t: 'price', text: c.amount()}, button(r, c, p, {block: false})])])])],
};

window.SPLITS = {train: TRAIN, select: SELECT, test: TEST};
}
