// The trained puzzle networks in plain JavaScript: the numbers of the Python code, up to rounding.
"use strict";

/** Return {name: Float32Array} of a safetensors file, given as base64. */
function readSafetensors(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const start = 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (entry.dtype !== "F32") throw new Error(`${name} is ${entry.dtype}; weights must be F32`);
    tensors[name] = new Float32Array(bytes.slice(start + entry.data_offsets[0], start + entry.data_offsets[1]).buffer);
  }
  return tensors;
}

function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x)); // Abramowitz and Stegun 7.1.26, error below 1.5e-7
  const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - tail * Math.exp(-x * x));
}

const gelu = (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2));
const silu = (x) => x / (1 + Math.exp(-x));

/** Scale the `width` values of `x` from `at` on to a root mean square of one. */
function normalise(x, at, width, eps) {
  let sum = 0;
  for (let i = 0; i < width; i++) sum += x[at + i] ** 2;
  const factor = 1 / Math.sqrt(sum / width + eps);
  for (let i = 0; i < width; i++) x[at + i] *= factor;
}

/** Random numbers in [0, 1) that depend on the seed alone (mulberry32). */
function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Random numbers of a standard normal distribution. */
function normals(seed) {
  const uniform = uniforms(seed);
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/**
 * (1 - u) y + u tanh(c), with u and c from a cell and its four neighbours, on grids of any size; cells of the symbols in
 * `obstacles` stay zero.
 */
class GatedConvolutionNetwork {
  constructor(weights, config) {
    this.weights = weights;
    const d = (this.width = config.update.width);
    const hidden = (this.hidden = config.update.hidden);
    this.numClasses = config.num_classes;
    this.obstacles = new Set(config.obstacles);
    const [vertical, horizontal] = ["vertical", "horizontal"].map((name) => weights[`update.${name}.weight`]);
    this.taps = [[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]].map(([row, column]) => {
      const weight = new Float32Array(d * hidden); // (in, out)
      for (let o = 0; o < hidden; o++)
        for (let i = 0; i < d; i++) {
          const at = (o * d + i) * 3 + 1; // the middle of a kernel of three cells
          weight[i * hidden + o] = (column ? 0 : vertical[at + row]) + (row ? 0 : horizontal[at + column]);
        }
      return { row, column, weight };
    });
    this.bias = weights["update.vertical.bias"].map((value, o) => value + weights["update.horizontal.bias"][o]);
  }

  stateSize(question) {
    return question.cells.length * this.width;
  }

  mask(question, state) {
    question.cells.forEach((symbol, cell) => {
      if (this.obstacles.has(symbol)) state.fill(0, cell * this.width, (cell + 1) * this.width);
    });
    return state;
  }

  /** The state plus the embedded question. */
  embed(question, y) {
    const d = this.width;
    const embedding = this.weights["embedding.weight"];
    const h = new Float32Array(y.length);
    question.cells.forEach((symbol, cell) => {
      for (let i = 0; i < d; i++) h[cell * d + i] = y[cell * d + i] + embedding[symbol * d + i];
    });
    return h;
  }

  update(question) {
    return (y) => {
      const h = this.embed(question, y);
      const next = new Float32Array(y.length);
      question.cells.forEach((symbol, cell) => {
        if (!this.obstacles.has(symbol)) this.updateCell(question, y, h, cell, next);
      });
      return next;
    };
  }

  updateCell({ height, width }, y, h, cell, next) {
    const [d, hidden] = [this.width, this.hidden];
    const [weight, bias] = [this.weights["update.outer.weight"], this.weights["update.outer.bias"]];
    const sum = Float64Array.from(this.bias);
    for (const tap of this.taps) {
      const [r, c] = [Math.floor(cell / width) + tap.row, (cell % width) + tap.column];
      if (r < 0 || r >= height || c < 0 || c >= width) continue;
      for (let i = 0; i < d; i++) {
        const value = h[(r * width + c) * d + i];
        for (let o = 0; o < hidden; o++) sum[o] += value * tap.weight[i * hidden + o];
      }
    }
    const inner = sum.map(gelu);
    for (let i = 0; i < d; i++) {
      const gate = 1 / (1 + Math.exp(-bias[i] - dot(weight, i * hidden, inner)));
      const candidate = Math.tanh(bias[d + i] + dot(weight, (d + i) * hidden, inner));
      next[cell * d + i] = y[cell * d + i] + gate * (candidate - y[cell * d + i]);
    }
  }

  logits(question, y) {
    const [weight, bias] = [this.weights["head.weight"], this.weights["head.bias"]];
    return Float32Array.from({ length: question.cells.length * this.numClasses }, (_, index) => {
      const [cell, k] = [Math.floor(index / this.numClasses), index % this.numClasses];
      let sum = bias[k];
      for (let i = 0; i < this.width; i++) sum += weight[k * this.width + i] * y[cell * this.width + i];
      return sum;
    });
  }
}

/** The update that commutes with the symmetries of Sudoku: one vector for each digit of each cell. */
class SymmetricNetwork {
  constructor(weights, config) {
    Object.assign(this, { weights, width: config.update.width, hidden: config.update.hidden });
    Object.assign(this, { boxHeight: config.update.box_height, boxWidth: config.update.box_width });
    this.numLayers = config.update.num_layers;
    this.n = this.boxHeight * this.boxWidth;
    this.numClasses = this.n + 1;
  }

  stateSize() {
    return this.n ** 3 * this.width;
  }

  /** Row, column and box of a cell, as numbers below 3 n. */
  units(cell) {
    const [row, column] = [Math.floor(cell / this.n), cell % this.n];
    const box = Math.floor(row / this.boxHeight) * this.boxHeight + Math.floor(column / this.boxWidth);
    return [row, this.n + column, 2 * this.n + box];
  }

  /** The embedding of each digit of each cell, and the digits that no clue excludes. */
  candidates(question) {
    const { n, width } = this;
    const seen = new Set();
    question.cells.forEach((digit, cell) => digit && this.units(cell).forEach((unit) => seen.add(unit * n + digit - 1)));
    const open = [];
    const vectors = new Float32Array(this.stateSize());
    for (let index = 0; index < n ** 3; index++) {
      const [cell, digit] = [Math.floor(index / n), index % n];
      const clue = question.cells[cell];
      const isExcluded = clue > 0 || this.units(cell).some((unit) => seen.has(unit * n + digit));
      const role = clue === digit + 1 ? 1 : isExcluded ? 2 : 0;
      if (role === 0) open.push(index);
      vectors.set(this.weights["embedding.weight"].subarray(role * width, (role + 1) * width), index * width);
    }
    return { open, vectors };
  }

  mask(question, state) {
    return state;
  }

  update(question) {
    const { open, vectors } = this.candidates(question);
    const d = this.width;
    return (y) => {
      const full = vectors.slice();
      for (const index of open) for (let i = 0; i < d; i++) full[index * d + i] += y[index * d + i];
      for (let layer = 0; layer < this.numLayers; layer++) this.layer(full, open, layer);
      return full;
    };
  }

  /** h ← norm(h + mlp([h, row + column, box, cell])) for the open digits, in place. */
  layer(full, open, number) {
    const { n, width: d, hidden } = this;
    const units = new Float32Array(3 * n * n * d); // means over the cells of a unit, for each digit
    const cells = new Float32Array(n * n * d); // means over the digits of a cell
    for (let index = 0; index < n ** 3; index++) {
      const [cell, digit] = [Math.floor(index / n), index % n];
      for (let i = 0; i < d; i++) cells[cell * d + i] += full[index * d + i] / n;
      for (const unit of this.units(cell))
        for (let i = 0; i < d; i++) units[(unit * n + digit) * d + i] += full[index * d + i] / n;
    }
    const [up, down] = ["gate_up_proj", "down_proj"].map((name) => this.weights[`update.layers.${number}.mlp.${name}.weight`]);
    const input = new Float32Array(4 * d);
    const middle = new Float32Array(hidden);
    for (const index of open) {
      const [cell, digit] = [Math.floor(index / n), index % n];
      const [row, column, box] = this.units(cell).map((unit) => (unit * n + digit) * d);
      for (let i = 0; i < d; i++) {
        input[i] = full[index * d + i];
        input[d + i] = units[row + i] + units[column + i];
        input[2 * d + i] = units[box + i];
        input[3 * d + i] = cells[cell * d + i];
      }
      for (let j = 0; j < hidden; j++) middle[j] = silu(dot(up, j * 4 * d, input)) * dot(up, (hidden + j) * 4 * d, input);
      for (let i = 0; i < d; i++) full[index * d + i] += dot(down, i * hidden, middle);
      normalise(full, index * d, d, 1e-5);
    }
  }

  logits(question, y) {
    const [weight, bias] = [this.weights["head.weight"], this.weights["head.bias"]];
    return Float32Array.from({ length: this.n ** 2 * this.numClasses }, (_, index) => {
      const [cell, digit] = [Math.floor(index / this.numClasses), (index % this.numClasses) - 1];
      return digit < 0 ? -1e4 : bias[0] + dot(weight, 0, y.subarray((cell * this.n + digit) * this.width));
    });
  }
}

/** The inner product of `b` with as many values of `a` from `at` on; `a` bounds it where `b` is longer. */
function dot(a, at, b) {
  const length = Math.min(b.length, a.length - at);
  let sum = 0;
  for (let i = 0; i < length; i++) sum += a[at + i] * b[i];
  return sum;
}

/** A solve by damped iteration from a random state, or from zero: `step` makes one evaluation. */
class Solve {
  constructor(network, question, { damping, tolerance = 1e-4, seed = 0, start, random = true }) {
    Object.assign(this, { network, question, damping, tolerance, evaluations: 0, residual: Infinity });
    this.update = network.update(question);
    const draw = random ? normals(seed) : () => 0;
    this.next = start ?? network.mask(question, new Float32Array(network.stateSize(question)).map(draw));
  }

  get converged() {
    return this.residual < this.tolerance;
  }

  /** Evaluate once. The residual belongs to `state`, from which `next` is a damped step. */
  step() {
    const y = (this.state = this.next);
    const f = this.update(y);
    let change = 0;
    let size = 0;
    for (let i = 0; i < y.length; i++) {
      change += (f[i] - y[i]) ** 2;
      size += y[i] ** 2;
    }
    this.residual = Math.sqrt(change / size);
    this.next = y.map((value, i) => value + this.damping * (f[i] - value));
    this.evaluations += 1;
  }

  /** For each cell the most probable value, and the probability of every value. */
  answer() {
    const [k, logits] = [this.network.numClasses, this.network.logits(this.question, this.state)];
    const values = [];
    const probabilities = [];
    for (let at = 0; at < logits.length; at += k) {
      const cell = Array.from(logits.subarray(at, at + k));
      const largest = Math.max(...cell);
      const weights = cell.map((logit) => Math.exp(logit - largest));
      const total = weights.reduce((a, b) => a + b);
      values.push(cell.indexOf(largest));
      probabilities.push(weights.map((weight) => weight / total));
    }
    return { values, probabilities };
  }
}

if (typeof module !== "undefined") module.exports = { GatedConvolutionNetwork, SymmetricNetwork, Solve, readSafetensors };
