"use strict";
const table = document.querySelector("table");
const body = table.tBodies[0];

function sortBy(head) {
  const column = head.cellIndex;
  const up = head.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.v;
  const order = (first, second) => {
    const [a, b] = [key(first), key(second)];
    if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured comes last
    const numbers = Number(a) - Number(b);
    const way = Number.isNaN(numbers) ? a.localeCompare(b) : numbers;
    return up ? way : -way;
  };
  body.append(...[...body.rows].sort(order));
}

for (const head of table.tHead.rows[0].cells) {
  head.querySelector("button").addEventListener("click", () => sortBy(head));
}
