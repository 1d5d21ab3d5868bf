// Sorts a table by the column whose heading is pressed. The page is complete without it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const columns = headings(table);
  columns.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      columns.forEach((one) => one.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
      rows.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// The heading of every column, left to right: those over a group of columns stand for none.
function headings(table) {
  const [upper, lower] = table.tHead.rows;
  const below = lower ? [...lower.cells] : [];
  return [...upper.cells].flatMap((cell) => (cell.scope === "colgroup" ? below.splice(0, cell.colSpan) : [cell]));
}

// A cell's number, or its text; what is not known comes last of a falling order.
function value(cell) {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replaceAll(",", ""));
  return cell.tagName === "TD" && text === "-" ? -Infinity : Number.isNaN(number) ? text : number;
}
