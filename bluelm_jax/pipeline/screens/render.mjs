// Renders screens: node render.mjs OUTPUT_DIR SPLIT FIRST COUNT SEED; writes NNNN.png and one JSON line a screen to stdout.

import {createRequire} from 'node:module';
import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {COLORS, content, random} from './content.mjs';
import {SPLITS} from './templates.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const MODULES = process.env.NODE_MODULES ?? join(HERE, 'node_modules');
const {chromium} = createRequire(join(MODULES, 'x.js'))('playwright-core');
const KITS = ['weui', 'vant', 'antd'];
const OFFSETS = {train: 0, select: 1, test: 2};

const [output, split, first, count, seed] = process.argv.slice(2).map((v, i) => (i < 2 ? v : Number(v)));

// What to draw for one index: everything follows from (seed, split, index).
function plan(index) {
  const r = random(seed * 1000003 + OFFSETS[split] * 350003 + index);
  const names = Object.keys(SPLITS[split]);
  const template = names[index % names.length];
  const kit = KITS[Math.floor(index / names.length) % KITS.length];
  const language = r.pick(['zh', 'en']);
  const dark = r.chance(0.2);
  const colors = Object.keys(COLORS).filter((c) => !(dark && c === 'black'));  // black on black is not seen
  const accent = r.pick(colors);
  const paint = {accent, any: () => (r.chance(0.35) ? accent : r.pick(colors))};
  const nodes = SPLITS[split][template](r, content(language, r), paint);
  return {template, kit, language, dark, spec: {kit, dark, nodes, colors: COLORS, font: r.int(13, 17), pad: r.int(2, 12)}};
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars', '--font-render-hinting=none', '--allow-file-access-from-files',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run'],
});
const page = await (await browser.newContext({viewport: {width: 360, height: 720}, deviceScaleFactor: 1, isMobile: true, locale: 'zh-CN'})).newPage();
await page.setContent('<!doctype html><meta name="viewport" content="width=device-width,initial-scale=1"><body><div id="root"></div></body>');
for (const style of ['weui/dist/style/weui.min.css', 'vant/lib/index.css', 'antd-mobile/bundle/style.css']) await page.addStyleTag({path: join(MODULES, style)});
await page.addStyleTag({path: join(HERE, 'page/page.css')});
for (const script of ['vue/dist/vue.global.prod.js', 'vant/lib/vant.min.js', 'react/umd/react.production.min.js', 'react-dom/umd/react-dom.production.min.js', 'antd-mobile/bundle/antd-mobile.umd.js']) await page.addScriptTag({path: join(MODULES, script)});
for (const script of ['layout', 'plain', 'kits']) await page.addScriptTag({path: join(HERE, `page/${script}.js`)});

for (let index = first; index < first + count; index++) {
  const {template, kit, language, dark, spec} = plan(index);
  await page.evaluate((s) => window.drawPage(s), spec);
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  const elements = await page.evaluate(() => window.extract());
  await page.screenshot({path: join(output, `${index}.png`)});
  let hidden = null;  // every eleventh page once more without its text, to check the boxes against pixels
  if (index % 11 === 0) {
    await page.addStyleTag({content: '[data-role=text], [data-role=price], [data-role=title] { color: transparent !important; }'}).then((s) => { hidden = s; });
    await page.screenshot({path: join(output, `${index}.hidden.png`)});
    await hidden.evaluate((s) => s.remove());
  }
  console.log(JSON.stringify({index, template, kit, language, theme: dark ? 'dark' : 'light', elements}));
}
await browser.close();
