// Sorts a table by the column whose heading is clicked. Without this script the page has the same tables, unsorted.
"use strict";

// The rows of a column in order, as places. Values are texts; what is not known, "", comes last either way.
function ordered(values, ascending) {
  const known = values.filter((value) => value !== "");
  const numbers = new Map([["inf", Infinity], ["-inf", -Infinity]]);
  const number = (value) => (numbers.has(value) ? numbers.get(value) : Number(value));
  const numeric = known.every((value) => !Number.isNaN(number(value)));
  const compare = (one, other) => {
    if (!numeric) return one < other ? -1 : Number(one > other);
    return number(one) < number(other) ? -1 : Number(number(one) > number(other));
  };
  return values.map((_, place) => place).sort((one, other) => {
    if (values[one] === "" || values[other] === "") return Number(values[one] === "") - Number(values[other] === "");
    return (ascending ? 1 : -1) * compare(values[one], values[other]);
  });
}

function sort(table, column) {
  const headings = [...table.tHead.rows[0].cells];
  const ascending = headings[column].getAttribute("aria-sort") !== "ascending";
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const values = rows.map((row) => row.cells[column].dataset.value);
  body.append(...ordered(values, ascending).map((place) => rows[place]));
}

if (typeof document !== "undefined") {
  for (const table of document.querySelectorAll("table.fganalysis")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, column));
    });
  }
}
