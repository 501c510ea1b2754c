// What screen `index` of a split shows; everything follows from its arguments.

// asked: {split, index, seed, chinese, dark (shares of the screens), first_edition}.
window.plan = ({split, index, seed, chinese, dark: darkShare, first_edition: first}) => {
  const r = window.random(seed * 1000003 + {train: 0, select: 1, test: 2}[split] * 350003 + index);
  const names = Object.keys(window.SPLITS[split]), kits = ['weui', 'vant', 'antd'];
  const template = names[index % names.length];
  const kit = kits[Math.floor(index / names.length) % kits.length];
  const language = r.chance(chinese) ? 'zh' : 'en';
  const dark = r.chance(darkShare);
  const colors = Object.keys(COLORS).filter((c) => !(dark && c === 'black'));  // black on black is not seen
  const accent = r.pick(colors);
  const paint = {accent, any: () => (r.chance(0.35) ? accent : r.pick(colors))};
  const nodes = window.SPLITS[split][template](r, window.content(language, r), paint);
  return {template, kit, language, theme: dark ? 'dark' : 'light', spec: {kit, dark, first, nodes, colors: COLORS, font: r.int(13, 17), pad: r.int(2, 12)}};
};
