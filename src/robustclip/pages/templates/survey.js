"use strict";
const answers = [];
let since = performance.now();
const byId = (id) => document.getElementById(id);

function show() {
  const at = answers.length;
  byId("progress").value = at / TRIALS.length;
  byId("ask").hidden = at === TRIALS.length;
  byId("done").hidden = at < TRIALS.length;
  if (at === TRIALS.length) {
    const lines = answers.map((one, i) => [TRIALS[i].trial, one.answer, one.seconds.toFixed(1)].join(","));
    const csv = ["trial,answer,seconds", ...lines].join("\n") + "\n";
    byId("csv").value = csv;
    byId("save").href = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
    return;
  }
  byId("prompt").textContent = TRIALS[at].prompt;
  for (const side of ["left", "right"]) byId(side).querySelector("img").src = TRIALS[at][side];
  since = performance.now();
}

function answer(side) {
  if (answers.length === TRIALS.length) return;
  answers.push({ answer: side, seconds: (performance.now() - since) / 1000 });
  show();
}

function back() {
  answers.pop();
  show();
}

const KEYS = { ArrowLeft: () => answer("left"), ArrowRight: () => answer("right"), ArrowDown: () => answer("neither"), Backspace: back };
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});
for (const side of ["left", "right", "neither"]) byId(side).addEventListener("click", () => answer(side));
byId("back").addEventListener("click", back);
show();
