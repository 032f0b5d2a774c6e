// Returns the problems of a page that assistive technology or readers with low vision would have.
(() => {
  const problems = [];
  const describe = (e) => `${e.tagName.toLowerCase()} "${(e.textContent || "").trim().slice(0, 40)}"`;
  const require = (ok, text) => { if (!ok) problems.push(text); };
  const name = (e) => (e.getAttribute("aria-label") || e.textContent || e.getAttribute("alt") || "").trim();

  require(document.documentElement.lang, "the page has no language");
  require(document.title.trim(), "the page has no title");
  require(document.querySelectorAll("main").length === 1, "the page has not exactly one main element");
  require(document.querySelectorAll("h1").length === 1, "the page has not exactly one h1");
  require(document.querySelector('meta[name="viewport"]'), "the page has no viewport");
  require(document.scripts.length === 0, "the page has scripts");

  let level = 0;
  for (const h of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const next = Number(h.tagName[1]);
    require(next <= level + 1, `${describe(h)} skips a level of headings`);
    require(name(h), "a heading is empty");
    level = next;
  }
  const ids = new Set();
  for (const e of document.querySelectorAll("[id]")) {
    require(!ids.has(e.id), `two elements have the id ${e.id}`);
    ids.add(e.id);
  }
  for (const e of document.querySelectorAll("[aria-labelledby]")) {
    require(document.getElementById(e.getAttribute("aria-labelledby")), `${describe(e)} has a label that does not exist`);
  }
  for (const e of document.querySelectorAll("a, button, summary")) require(name(e), "a link or a button has no name");
  for (const e of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    require(e.labels.length || e.getAttribute("aria-label"), "a field has no label");
  }
  for (const e of document.querySelectorAll("img, svg")) require(name(e), "an image has no text");
  for (const table of document.querySelectorAll("table")) {
    require(table.caption && name(table.caption), "a table has no caption");
    for (const th of table.querySelectorAll("th")) require(th.scope && name(th), `${describe(th)} has no scope or no text`);
    for (const row of table.tBodies[0].rows) {
      require(row.cells.length === table.tHead.rows[0].cells.length, `${describe(row)} has not as many cells as the header`);
    }
  }

  const color = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (e) => {
    for (; e; e = e.parentElement) {
      const c = color(getComputedStyle(e).backgroundColor);
      if (c.a === 1) return c.rgb;
    }
    return [255, 255, 255];
  };
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || !e.getClientRects().length) continue;
    texts++;
    const [a, b] = [luminance(color(getComputedStyle(e).color).rgb), luminance(background(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    require(ratio >= 4.5, `${describe(e)} has a contrast of ${ratio.toFixed(2)}, less than 4.5`);
  }
  require(texts > 20, `only ${texts} texts were looked at`);
  require(document.documentElement.scrollWidth <= innerWidth, `the page is ${document.documentElement.scrollWidth} wide, the window ${innerWidth}`);
  return problems;
})()
