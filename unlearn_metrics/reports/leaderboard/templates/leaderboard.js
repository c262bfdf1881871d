"use strict";
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const sections = all("main > section");

  // Sorting: a row is a tbody (its values and its details). What is unknown comes last, either way.
  const key = (body, column) => {
    const cell = body.rows[0].cells[column];
    if (cell.dataset.v === undefined) return null;
    return cell.classList.contains("name") ? cell.dataset.v : Number(cell.dataset.v);
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  const sort = (button) => {
    const header = button.closest("th");
    const table = button.closest("table");
    const down = header.getAttribute("aria-sort") === "ascending";
    all("th[aria-sort]", table).forEach((th) => th.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const place = (body) => Number(body.dataset.place);
    const keyed = [...table.tBodies].map((body) => [key(body, Number(button.dataset.col)), body]);
    keyed.sort(([a, x], [b, y]) => {
      if (a === null || b === null) return (a === null) - (b === null) || place(x) - place(y);
      return (down ? compare(b, a) : compare(a, b)) || place(x) - place(y);
    });
    table.append(...keyed.map(([, body]) => body));
  };
  all("thead button").forEach((button) => button.addEventListener("click", () => sort(button)));

  // Details of a row.
  const toggle = (button, open) => {
    button.setAttribute("aria-expanded", open);
    byId(button.getAttribute("aria-controls")).hidden = !open;
  };
  all(".toggle").forEach((button) =>
    button.addEventListener("click", () => toggle(button, button.getAttribute("aria-expanded") !== "true")));
  const follow = () => {
    const body = byId(decodeURIComponent(location.hash.slice(1)));
    if (body?.tagName !== "TBODY") return;
    toggle(body.querySelector(".toggle"), true);
    body.scrollIntoView();
  };
  addEventListener("hashchange", follow);

  // The points of the row under the pointer or the focus stand out in the plots.
  const light = (section, row) => all("svg", section).forEach((svg) => {
    svg.classList.toggle("focus", row !== null);
    all("[data-row]", svg).forEach((part) => part.classList.toggle("lit", part.dataset.row === row));
  });
  for (const section of sections) {
    for (const body of all("tbody[data-row]", section)) {
      for (const on of ["mouseenter", "focusin"]) body.addEventListener(on, () => light(section, body.dataset.row));
      for (const off of ["mouseleave", "focusout"]) body.addEventListener(off, () => light(section, null));
    }
  }

  // Filters, where there are any.
  const filter = () => {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    let total = 0;
    for (const section of sections) {
      const shown = new Set();
      for (const body of all("tbody[data-row]", section)) {
        const chosen = ["benchmark", "base"].every((id) => [body.dataset[id], ""].includes(byId(id).value));
        body.hidden = !(chosen && words.every((word) => body.dataset.find.includes(word)));
        if (!body.hidden) shown.add(body.dataset.row);
        total += 1;
      }
      section.hidden = shown.size === 0;
      all("svg [data-row]", section).forEach((part) => part.classList.toggle("off", !shown.has(part.dataset.row)));
      count += shown.size;
    }
    all(".between").forEach((part) => { part.hidden = all("section.brief").every((section) => section.hidden); });
    byId("count").value = count === total ? `${total} rows` : `${count} of ${total} rows`;
    byId("nothing").hidden = count > 0;
  };
  if (byId("search")) {
    for (const id of ["benchmark", "base", "search"]) {
      for (const on of ["input", "change"]) byId(id).addEventListener(on, filter);
    }
    filter();
  }
  follow();
}
