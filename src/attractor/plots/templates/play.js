// The page: a puzzle to draw, one evaluation per frame, and the residual as a curve.
"use strict";

const [WALL, FLOOR, START, GOAL, PATH] = [0, 1, 2, 3, 4];
const LIMIT = 2048; // evaluations
const HELP = {
  maze: "Click or drag to draw walls. Keys: arrows move, space draws or removes a wall, S and G move start and goal, Enter solves.",
  sudoku: "Click a cell and choose a digit. Keys: arrows move, digits write, 0 or Backspace clears, Enter solves.",
};
const linked = location.hash.slice(1); // play.html#sudoku-6x6 begins to solve a puzzle of this model, always the same one
const random = uniforms(linked ? 1 : Date.now());
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const board = byId("board");

let kind, network, question, solve, seed, curve, cursor, timer, brush;

function neighbours(cell, step = 1) {
  const { width, height } = question;
  const [row, column] = [Math.floor(cell / width), cell % width];
  return [[row - step, column], [row + step, column], [row, column - step], [row, column + step]]
    .filter(([r, c]) => r >= 0 && r < height && c >= 0 && c < width)
    .map(([r, c]) => r * width + c);
}

/** A random maze in which every two floor cells are connected by one path, by depth-first search. */
function drawMaze(size) {
  question = { height: size, width: size, cells: new Uint8Array(size * size).fill(WALL) };
  const isInside = (cell) => cell % size > 0 && cell % size < size - 1 && cell > size && cell < size * (size - 1);
  const stack = [size + 1];
  question.cells[size + 1] = FLOOR;
  while (stack.length) {
    const cell = stack[stack.length - 1];
    const next = neighbours(cell, 2).filter((other) => isInside(other) && question.cells[other] === WALL);
    if (!next.length) {
      stack.pop();
      continue;
    }
    const other = next[Math.floor(random() * next.length)];
    question.cells[other] = question.cells[(cell + other) / 2] = FLOOR;
    stack.push(other);
  }
  question.cells[size + 1] = START;
  question.cells[size * (size - 1) - 2] = GOAL;
}

/** Return the steps from `from` to every cell of a maze; Infinity where there is no way. */
function distances(from) {
  const found = Array.from(question.cells, () => Infinity);
  found[from] = 0;
  for (const queue = [from]; queue.length; ) {
    const cell = queue.shift();
    for (const other of neighbours(cell))
      if (question.cells[other] !== WALL && found[other] === Infinity) {
        found[other] = found[cell] + 1;
        queue.push(other);
      }
  }
  return found;
}

/** Check an answer against the rules: a sentence, and the cells that break them. */
function check(values) {
  return kind === "maze" ? checkMaze(values) : checkSudoku(values);
}

function checkMaze(values) {
  const [start, goal] = [question.cells.indexOf(START), question.cells.indexOf(GOAL)];
  const [there, back] = [distances(start), distances(goal)];
  if (there[goal] === Infinity) return { text: "there is no way from S to G", wrong: [] };
  const marked = [...values.keys()].filter((cell) => values[cell] === PATH);
  const wrong = marked.filter((cell) => question.cells[cell] !== FLOOR || there[cell] + back[cell] !== there[goal]);
  const perDistance = new Set(marked.filter((cell) => !wrong.includes(cell)).map((cell) => there[cell]));
  const isComplete = perDistance.size === there[goal] - 1 && marked.length === there[goal] - 1;
  const isRight = !wrong.length && isComplete;
  return { text: isRight ? `verified: a shortest path of ${there[goal]} steps` : "wrong: no shortest path is marked", wrong };
}

function checkSudoku(values) {
  const wrong = new Set();
  question.cells.forEach((given, cell) => given && values[cell] !== given && wrong.add(cell));
  const cells = [...values.keys()];
  for (const a of cells)
    for (const b of cells)
      if (a < b && values[a] === values[b] && network.units(a).some((unit, i) => unit === network.units(b)[i]))
        [a, b].forEach((cell) => wrong.add(cell));
  return { text: wrong.size ? "wrong: digits clash" : "verified: solved", wrong: [...wrong] };
}

function drawBoard() {
  const pen = board.getContext("2d");
  const { width, height, cells } = question;
  const side = board.width / Math.max(width, height);
  const found = solve?.state ? solve.answer() : null;
  const wrong = found && (solve.converged || solve.evaluations >= LIMIT) ? check(found.values).wrong : [];
  pen.clearRect(0, 0, board.width, board.height);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  cells.forEach((symbol, cell) => {
    const [x, y] = [(cell % width) * side, Math.floor(cell / width) * side];
    const draw = kind === "maze" ? drawMazeCell : drawDigit;
    draw(pen, symbol, found?.probabilities[cell], x, y, side, wrong.includes(cell));
  });
  if (kind !== "maze") drawBoxes(pen, side);
  if (document.activeElement === board) {
    pen.strokeStyle = colour("--path");
    pen.lineWidth = 4;
    pen.strokeRect((cursor % width) * side + 2, Math.floor(cursor / width) * side + 2, side - 4, side - 4);
  }
}

function drawMazeCell(pen, symbol, probabilities, x, y, side, isWrong) {
  pen.globalAlpha = symbol === WALL ? 0.75 : (probabilities?.[PATH] ?? 0);
  pen.fillStyle = symbol === WALL ? colour("--ink") : colour(isWrong ? "--bad" : "--path");
  pen.fillRect(x, y, side + 0.5, side + 0.5);
  pen.globalAlpha = 1;
  if (symbol !== START && symbol !== GOAL) return;
  pen.fillStyle = colour("--ink");
  pen.font = `bold ${side * 0.8}px sans-serif`;
  pen.fillText(symbol === START ? "S" : "G", x + side / 2, y + side / 2);
}

/** A given digit, or the most probable one, the fainter the less certain. */
function drawDigit(pen, given, probabilities, x, y, side, isWrong) {
  if (!given && !probabilities) return;
  const digit = given || probabilities.indexOf(Math.max(...probabilities));
  pen.globalAlpha = given ? 1 : 0.15 + 0.85 * probabilities[digit];
  pen.fillStyle = colour(isWrong ? "--bad" : given ? "--ink" : "--path");
  pen.font = `${given ? "bold " : ""}${side * 0.6}px sans-serif`;
  pen.fillText(digit, x + side / 2, y + side / 2);
  pen.globalAlpha = 1;
}

function drawBoxes(pen, side) {
  pen.strokeStyle = colour("--line");
  for (let i = 0; i <= network.n; i++)
    for (const [isRow, size] of [[true, network.boxHeight], [false, network.boxWidth]]) {
      pen.lineWidth = i % size ? 1 : 5;
      pen.beginPath();
      pen.moveTo(isRow ? 0 : i * side, isRow ? i * side : 0);
      pen.lineTo(isRow ? board.width : i * side, isRow ? i * side : board.width);
      pen.stroke();
    }
}

function drawCurve() {
  const canvas = byId("curve");
  const pen = canvas.getContext("2d");
  const [left, right, top, bottom] = [70, canvas.width - 10, 15, canvas.height - 40];
  const [most, least] = [1, -5]; // powers of ten
  const vertical = (value) => top + ((most - Math.log10(value)) / (most - least)) * (bottom - top);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = colour("--ink");
  pen.font = "20px sans-serif";
  for (let power = most; power > least; power -= 2) pen.fillText(`10^${power}`, 5, vertical(10 ** power) + 7);
  pen.fillText("residual by evaluation", left, canvas.height - 8);
  pen.strokeStyle = colour("--line");
  pen.lineWidth = 2;
  pen.setLineDash([8, 8]);
  pen.beginPath();
  pen.moveTo(left, vertical(1e-4));
  pen.lineTo(right, vertical(1e-4));
  pen.stroke();
  pen.setLineDash([]);
  pen.strokeStyle = colour("--path");
  pen.lineWidth = 4;
  pen.beginPath();
  curve.forEach((value, i) => pen.lineTo(left + (i / Math.max(40, curve.length)) * (right - left), vertical(Math.min(Math.max(value, 1e-5), 10))));
  pen.stroke();
}

function report() {
  const count = solve ? `${solve.evaluations} evaluation${solve.evaluations === 1 ? "" : "s"}` : "no evaluation yet";
  let text = `${count}.`;
  if (solve?.evaluations) {
    const is = solve.converged ? "converged" : solve.evaluations >= LIMIT ? "did not converge" : "residual";
    text = `${count}, ${is}${is === "residual" ? "" : " at residual"} ${solve.residual.toExponential(1)}.`;
    const verdict = check(solve.answer().values).text;
    if (is !== "residual" || verdict.startsWith("verified")) text += ` The answer is ${verdict}.`;
  }
  byId("status").textContent = text;
  byId("run").textContent = timer ? "Pause" : "Solve";
  drawBoard();
  drawCurve();
}

function reset() {
  stop();
  solve = null;
  curve = [];
  report();
}

function stop() {
  clearTimeout(timer);
  timer = null;
}

function step() {
  const { damping, random_init } = MODELS[kindName()].config;
  solve ??= new Solve(network, question, { damping, seed, random: random_init });
  if (solve.converged || solve.evaluations >= LIMIT) return false;
  solve.step();
  curve.push(solve.residual);
  return true;
}

function run() {
  // Slowly enough to be watched. Information of models that start at zero moves one cell in an evaluation.
  let left = MODELS[kindName()].config.random_init ? 1 : 4;
  while (left && step()) left -= 1;
  timer = left ? null : setTimeout(run, 30);
  report();
}

const kindName = () => byId("kind").value;

function choose() {
  const { kind: what, weights, config } = MODELS[kindName()];
  const Network = config.update.box_height ? SymmetricNetwork : GatedConvolutionNetwork;
  kind = what;
  network = new Network(readSafetensors(weights), config);
  byId("sizes").hidden = kind !== "maze";
  byId("restart").hidden = !config.random_init; // all starts are the same
  byId("help").textContent = HELP[kind];
  byId("digits").replaceChildren();
  for (let digit = 1; kind !== "maze" && digit <= network.n + 1; digit++) {
    const button = document.createElement("button");
    button.textContent = digit > network.n ? "⌫" : digit;
    button.onclick = () => write(digit % (network.n + 1));
    byId("digits").append(button, " ");
  }
  create();
}

function create() {
  if (kind === "maze") drawMaze(Number(byId("size").value));
  else {
    const { examples } = MODELS[kindName()];
    const text = examples[Math.floor(random() * examples.length)];
    question = { height: network.n, width: network.n, cells: Uint8Array.from(text, Number) };
  }
  cursor = kind === "maze" ? question.width + 1 : 0;
  seed = 0;
  reset();
}

/** Remove inner walls, or all digits. */
function clear() {
  const { width, height, cells } = question;
  cells.forEach((symbol, cell) => {
    const isBorder = cell % width === 0 || cell % width === width - 1 || cell < width || cell >= width * (height - 1);
    if (kind !== "maze") cells[cell] = 0;
    else if (symbol === WALL && !isBorder) cells[cell] = FLOOR;
  });
  reset();
}

/** Write a digit at the cursor, or a symbol of a maze; start and goal only move. */
function write(symbol) {
  const { cells } = question;
  if (kind === "maze") {
    if (cells[cursor] === START || cells[cursor] === GOAL) return;
    if (symbol === START || symbol === GOAL) cells[cells.indexOf(symbol)] = FLOOR;
  }
  if (cells[cursor] === symbol) return;
  cells[cursor] = symbol;
  reset();
}

function cellAt(event) {
  const box = board.getBoundingClientRect();
  const [column, row] = [event.clientX - box.left, event.clientY - box.top].map((at) => Math.floor((at / box.width) * question.width));
  return row >= 0 && column >= 0 && row < question.height && column < question.width ? row * question.width + column : cursor;
}

board.addEventListener("pointerdown", (event) => {
  board.focus();
  cursor = cellAt(event);
  brush = question.cells[cursor] === WALL ? FLOOR : WALL;
  if (kind === "maze") write(brush);
  drawBoard();
});
board.addEventListener("pointermove", (event) => {
  if (!event.buttons || kind !== "maze" || cursor === cellAt(event)) return;
  cursor = cellAt(event);
  write(brush);
});
board.addEventListener("keydown", (event) => {
  const { width, height, cells } = question;
  const moves = { ArrowUp: -width, ArrowDown: width, ArrowLeft: -1, ArrowRight: 1 };
  if (event.key in moves) {
    const next = cursor + moves[event.key];
    const isOutside = next < 0 || next >= width * height || (Math.abs(moves[event.key]) === 1 && Math.floor(next / width) !== Math.floor(cursor / width));
    cursor = isOutside ? cursor : next;
  } else if (event.key === "Enter") byId("run").click();
  else if (kind === "maze" && event.key === " ") write(cells[cursor] === WALL ? FLOOR : WALL);
  else if (kind === "maze" && "sgSG".includes(event.key)) write("sS".includes(event.key) ? START : GOAL);
  else if (kind !== "maze" && (event.key === "Backspace" || Number(event.key) <= network.n)) write(Number(event.key) || 0);
  else return;
  event.preventDefault();
  drawBoard();
});
board.addEventListener("focus", drawBoard);
board.addEventListener("blur", drawBoard);
byId("kind").onchange = choose;
byId("size").onchange = byId("new").onclick = create;
byId("clear").onclick = clear;
byId("once").onclick = () => (stop(), step(), report());
byId("restart").onclick = () => (seed++, reset(), run());
byId("run").onclick = () => (timer ? (stop(), report()) : (solve?.converged && reset(), run()));
matchMedia("(prefers-color-scheme: dark)").onchange = report;

for (const name of Object.keys(MODELS)) byId("kind").append(new Option(MODELS[name].title, name));
if (linked in MODELS) byId("kind").value = linked;
choose();
if (linked) byId("run").click();
