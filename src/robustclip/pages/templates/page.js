"use strict";
(() => {
  const list = document.getElementById("cases");
  const cases = [...list.children];
  const numbers = new Map(cases.map((one) => [one, JSON.parse(one.dataset.numbers)]));
  const texts = new Map(cases.map((one) => [one, one.dataset.text.toLowerCase()]));
  const at = (id) => document.getElementById(id);
  const [filter, sort, direction, strength, count] = ["filter", "sort", "direction", "strength", "count"].map(at);

  // Maps lie on the picture they are of. It is on the page once; here its place below the map is told.
  const under = (where, name, picture) => picture && where.style.setProperty(name, `url(${picture.src})`);
  for (const one of cases) {
    under(one, "--image", one.querySelector(".original img"));
    for (const view of one.querySelectorAll(".of-view")) under(view, "--attacked", view.querySelector(".of-attacked img"));
  }

  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const one of cases) {
      one.hidden = !words.every((word) => texts.get(one).includes(word));
      shown += !one.hidden;
    }
    count.textContent = shown === cases.length ? `${shown} shown` : `${shown} of ${cases.length} shown`;
    at("nothing").hidden = shown > 0;
  };

  const arrange = () => {
    const highest = direction.getAttribute("aria-pressed") === "true";
    let ordered = [...cases];
    if (sort.value) {
      const [referee, name] = JSON.parse(sort.value);
      const value = (one) => numbers.get(one)[referee]?.[name] ?? null;
      const known = ordered.filter((one) => value(one) !== null).sort((a, b) => value(a) - value(b));
      if (highest) known.reverse();
      ordered = [...known, ...ordered.filter((one) => value(one) === null)]; // what has no number comes last
    }
    list.append(...ordered);
    direction.hidden = !sort.value;
    direction.textContent = highest ? "highest first" : "lowest first";
  };

  const fade = () => document.documentElement.style.setProperty("--strength", strength.value / 100);

  filter.addEventListener("input", show);
  sort.addEventListener("change", arrange);
  direction.addEventListener("click", () => {
    direction.setAttribute("aria-pressed", direction.getAttribute("aria-pressed") !== "true");
    arrange();
  });
  strength.addEventListener("input", fade);
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  // Pictures load as they come into view, so that a long page opens at once; all others follow, or print would miss them.
  const rest = [...document.images];
  const load = () => {
    for (const image of rest.splice(0, 40)) image.loading = "eager";
    if (rest.length) setTimeout(load, 10);
  };
  window.addEventListener("load", load);
  window.addEventListener("beforeprint", () => rest.splice(0).forEach((image) => (image.loading = "eager")));

  fade();
  document.documentElement.classList.add("alive");
})();
