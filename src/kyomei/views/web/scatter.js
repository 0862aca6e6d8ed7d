// Points that are moved, zoomed and chosen. Libraries for this make code while they run, which the pages' policy refuses;
// so the points are drawn here, by WebGL, or on a plain canvas where there is none.

const SHADERS = [
  `attribute vec2 at; attribute vec4 colour; attribute float size; uniform vec4 view; uniform float ratio; varying vec4 tone;
   void main() { gl_Position = vec4((at - view.xy) * view.zw, 0.0, 1.0); gl_PointSize = size * ratio; tone = colour; }`,
  `precision mediump float; varying vec4 tone;
   void main() { float far = length(gl_PointCoord - 0.5); if (far > 0.5) discard; gl_FragColor = vec4(tone.rgb * tone.a, tone.a) * smoothstep(0.5, 0.38, far); }`,
];
const FLOATS = 7;
const NEAR_PX = 14;
const MOST_ZOOM = 60;

function program(gl) {
  const made = gl.createProgram();
  [gl.VERTEX_SHADER, gl.FRAGMENT_SHADER].forEach((kind, i) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, SHADERS[i]);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  });
  gl.linkProgram(made);
  return made;
}

function glPainter(canvas) {
  const gl = canvas.getContext("webgl", { premultipliedAlpha: true, antialias: false });
  if (!gl) return null;
  let used, count = 0;
  const begin = () => {
    used = program(gl);
    gl.useProgram(used);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    [["at", 2, 0], ["colour", 4, 2], ["size", 1, 6]].forEach(([name, size, offset]) => {
      const place = gl.getAttribLocation(used, name);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, gl.FLOAT, false, FLOATS * 4, offset * 4);
    });
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  };
  begin();
  return {
    begin,
    load(values) {
      count = values.length / FLOATS;
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    },
    draw(view, ratio) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform4f(gl.getUniformLocation(used, "view"), view.x, view.y, view.kx, view.ky);
      gl.uniform1f(gl.getUniformLocation(used, "ratio"), ratio);
      gl.drawArrays(gl.POINTS, 0, count);
    },
  };
}

function plainPainter(canvas) {
  const pen = canvas.getContext("2d");
  let held = new Float32Array();
  return {
    begin() {},
    load: (values) => (held = values),
    draw(view, ratio) {
      pen.clearRect(0, 0, canvas.width, canvas.height);
      for (let i = 0; i < held.length; i += FLOATS) {
        const [x, y, r, g, b, a, size] = held.subarray(i, i + FLOATS);
        pen.fillStyle = `rgba(${r * 255},${g * 255},${b * 255},${a})`;
        pen.beginPath();
        pen.arc(((x - view.x) * view.kx + 1) * canvas.width / 2, (1 - (y - view.y) * view.ky) * canvas.height / 2, size * ratio / 2, 0, 7);
        pen.fill();
      }
    },
  };
}

/** Points in a canvas.
 *  x, y: places; changed(i): a point was chosen, −1 for none; over(i, px, py): the pointer is at a point; open(i): it was opened. */
export class Scatter {
  constructor(canvas, x, y, { changed, over, open }) {
    Object.assign(this, { canvas, x, y, changed, over, open, chosen: -1, zoom: 1 });
    const ends = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    const [[left, right], [low, high]] = [ends(x), ends(y)];
    this.home = { x: (left + right) / 2, y: (low + high) / 2, half: Math.max(right - left, high - low, 1e-6) * 0.54 };
    this.middle = { x: this.home.x, y: this.home.y };
    this.painter = glPainter(canvas) || plainPainter(canvas);
    this.styles = null;
    this.pointers = new Map();
    const on = (name, act, options) => canvas.addEventListener(name, act, options);
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) on(name, (event) => this.up(event));
    on("pointerleave", () => this.over(-1));
    on("dblclick", () => this.chosen >= 0 && this.open(this.chosen));
    on("keydown", (event) => this.key(event));
    on("webglcontextlost", (event) => event.preventDefault());
    on("webglcontextrestored", () => (this.painter.begin(), this.style(this.styles)));
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(canvas);
  }

  end() {
    this.watch.disconnect();
  }

  /** colours: [r, g, b, a] of each point, 0 to 1; sizes in px; order: which are drawn first. */
  style({ colours, sizes, order }) {
    this.styles = { colours, sizes, order };
    const values = new Float32Array(order.length * FLOATS);
    order.forEach((i, k) => values.set([this.x[i], this.y[i], ...colours[i], sizes[i]], k * FLOATS));
    this.painter.load(values);
    this.draw();
  }

  view() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const side = Math.min(width, height) || 1;
    const k = this.zoom / this.home.half;
    return { x: this.middle.x, y: this.middle.y, kx: (k * side) / width, ky: (k * side) / height };
  }

  draw() {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    if (!this.styles) return;
    this.painter.draw(this.view(), ratio * Math.min(2.2, Math.sqrt(this.zoom)));
    this.moved?.();
  }

  /** Where a point is, in px of the canvas. */
  at(i) {
    const view = this.view();
    return [(((this.x[i] - view.x) * view.kx + 1) * this.canvas.clientWidth) / 2, ((1 - (this.y[i] - view.y) * view.ky) * this.canvas.clientHeight) / 2];
  }

  place(px, py) {
    const view = this.view();
    return [view.x + ((px / this.canvas.clientWidth) * 2 - 1) / view.kx, view.y + (1 - (py / this.canvas.clientHeight) * 2) / view.ky];
  }

  nearest(px, py) {
    let [best, far] = [-1, NEAR_PX ** 2];
    const { order } = this.styles;
    for (const i of order) {
      const [x, y] = this.at(i);
      const d = (x - px) ** 2 + (y - py) ** 2;
      if (d <= far) [best, far] = [i, d];
    }
    return best;
  }

  choose(i, bring = false) {
    this.chosen = i;
    if (bring && i >= 0) {
      const [x, y] = this.at(i);
      if (x < 20 || y < 20 || x > this.canvas.clientWidth - 20 || y > this.canvas.clientHeight - 20) this.middle = { x: this.x[i], y: this.y[i] };
    }
    this.changed(i);
    this.draw();
  }

  scale(factor, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
    const [x, y] = this.place(px, py);
    const before = this.zoom;
    this.zoom = Math.max(0.7, Math.min(MOST_ZOOM, this.zoom * factor));
    const kept = before / this.zoom;
    this.middle = { x: x + (this.middle.x - x) * kept, y: y + (this.middle.y - y) * kept };
    this.draw();
  }

  reset() {
    this.zoom = 1;
    this.middle = { x: this.home.x, y: this.home.y };
    this.draw();
  }

  wheel(event) {
    // A page that is scrolled past a map is not to be caught by it.
    if (!event.ctrlKey && document.activeElement !== this.canvas) return;
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    this.scale(Math.exp(-event.deltaY * 0.002), event.clientX - box.left, event.clientY - box.top);
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.dragged = 0;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      const i = this.nearest(event.offsetX, event.offsetY);
      this.over(i);
      return;
    }
    const now = [event.offsetX, event.offsetY];
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    if (others.length) {
      const [, still] = others[0];
      const span = ([x, y]) => Math.hypot(x - still[0], y - still[1]) || 1;
      this.scale(span(now) / span(before), (now[0] + still[0]) / 2, (now[1] + still[1]) / 2);
    } else {
      const [a, b] = [this.place(...before), this.place(...now)];
      this.middle = { x: this.middle.x + a[0] - b[0], y: this.middle.y + a[1] - b[1] };
      this.draw();
    }
    this.dragged += Math.hypot(now[0] - before[0], now[1] - before[1]);
    this.pointers.set(event.pointerId, now);
  }

  up(event) {
    if (this.pointers.delete(event.pointerId) && this.dragged < 4 && event.type === "pointerup") this.choose(this.nearest(event.offsetX, event.offsetY));
  }

  /** Arrows choose the nearest point that way; plus and minus zoom; 0 shows all; Enter opens. */
  key(event) {
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const act = { "+": () => this.scale(1.4), "=": () => this.scale(1.4), "-": () => this.scale(1 / 1.4), 0: () => this.reset(), Escape: () => this.choose(-1) }[event.key];
    if (!way && !act && event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    if (act) act();
    else if (way) this.choose(this.towards(way), true);
    else if (this.chosen >= 0) this.open(this.chosen);
  }

  towards([dx, dy]) {
    const from = this.chosen >= 0 ? this.at(this.chosen) : [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    let [best, least] = [this.chosen, Infinity];
    for (const i of this.styles.order) {
      if (i === this.chosen) continue;
      const [x, y] = this.at(i);
      const [along, across] = [(x - from[0]) * dx + (y - from[1]) * dy, Math.abs((x - from[0]) * dy) + Math.abs((y - from[1]) * dx)];
      const cost = along + 2 * across;
      if (along > 0.5 && across <= along * 1.2 && cost < least) [best, least] = [i, cost];
    }
    return best;
  }
}
