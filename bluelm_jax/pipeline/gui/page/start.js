// Runs before a page's own scripts: time stands still until window.bluelmRun moves it, chance is the same in every run, and
// nothing speaks past the blocked network.
(() => {
  let now = 0, count = 0;  // milliseconds since the page began
  const begin = 1767225600000;  // 2026-01-01
  const due = new Map();  // number -> {at, every, call}
  const call = (f, args) => (typeof f === 'function' ? () => f(...args) : () => (0, eval)(String(f)));
  const add = (at, every, f) => (due.set(++count, {at, every, call: f}), count);
  const wait = (ms) => Math.max(Number(ms) || 0, 1);
  const frame = () => (Math.floor(now / 16) + 1) * 16;
  window.setTimeout = (f, ms, ...args) => add(now + wait(ms), 0, call(f, args));
  window.setInterval = (f, ms, ...args) => add(now + wait(ms), wait(ms), call(f, args));
  window.requestAnimationFrame = (f) => add(frame(), 0, () => f(now));
  window.requestIdleCallback = (f) => add(now + 1, 0, () => f({didTimeout: false, timeRemaining: () => 10}));
  for (const name of ['clearTimeout', 'clearInterval', 'cancelAnimationFrame', 'cancelIdleCallback']) window[name] = (number) => void due.delete(number);
  const RealDate = Date;
  window.Date = class Date extends RealDate {
    constructor(...given) {
      if (given.length) super(...given);
      else super(begin + now);
    }
    static now() {
      return begin + now;
    }
  };
  performance.now = () => now;

  const {port1, port2} = new MessageChannel();
  const turn = () => new Promise((done) => ((port1.onmessage = done), port2.postMessage(0)));  // lets promises and events go first
  window.bluelmRun = async (ms) => {
    for (const end = now + ms; ; await turn()) {
      let first = null;
      for (const [number, timer] of due) if (timer.at <= end && (first === null || timer.at < due.get(first).at)) first = number;
      now = first === null ? end : due.get(first).at;
      if (first === null) return;
      const timer = due.get(first);
      if (timer.every) timer.at += timer.every;
      else due.delete(first);
      try {
        timer.call();
      } catch (e) {
        console.error(e);
      }
    }
  };

  let s = 20260101;
  const next = () => {  // mulberry32
    s = (s + 0x6d2b79f5) | 0;
    let t = Math.imul(s ^ (s >>> 15), s | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  Math.random = next;
  Crypto.prototype.getRandomValues = (array) => {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    for (let i = 0; i < bytes.length; i++) bytes[i] = next() * 256;
    return array;
  };
  delete window.RTCPeerConnection;
  delete window.webkitRTCPeerConnection;
})();
