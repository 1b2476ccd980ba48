"use strict";
(async () => {
  const box = document.getElementById("table");
  if (!box || typeof DecompressionStream !== "function") return;
  const packed = Uint8Array.from(atob(box.dataset.rows), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const text = await new Response(stream).text();
  const reasons = JSON.parse(box.dataset.reasons);
  const states = { d: "done", f: "failed", r: "running", p: "pending" };
  const rows = text.split("\n").filter(Boolean).map((line) => {
    const [name, state, ms, attempts, reason] = line.split("\t");
    return { name, state: states[state], s: ms / 1000, attempts: +attempts, reason: reason === "" ? "" : reasons[reason] };
  });
  const page = 100;
  let sorted = "name", down = false, from = 0, shown = rows;
  const make = (tag, props, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const search = make("input", { type: "search", placeholder: "name or reason" });
  search.setAttribute("aria-label", "search by name or reason");
  const only = make("select", {}, make("option", { value: "" }, "all states"),
    ...Object.values(states).map((state) => make("option", { value: state }, state)));
  only.setAttribute("aria-label", "state");
  const back = make("button", { type: "button" }, "previous"), next = make("button", { type: "button" }, "next");
  const where = make("span", {});
  where.setAttribute("aria-live", "polite");
  const body = make("tbody", {}), head = make("tr", {});
  const columns = [["name", "task"], ["state", "state"], ["s", "seconds"], ["attempts", "attempts"], ["reason", "reason"]];
  const heads = columns.map(([key, title]) => {
    const button = make("button", { type: "button" }, title);
    const cell = make("th", { scope: "col" }, button);
    button.onclick = () => { down = sorted === key ? !down : false; sorted = key; from = 0; draw(); };
    head.append(cell);
    return [key, cell];
  });
  const draw = () => {
    const words = search.value.toLowerCase();
    shown = rows.filter((row) => (!only.value || row.state === only.value) &&
      (!words || row.name.toLowerCase().includes(words) || row.reason.toLowerCase().includes(words)));
    const sign = down ? -1 : 1;
    shown.sort((a, b) => (a[sorted] < b[sorted] ? -sign : a[sorted] > b[sorted] ? sign : 0));
    from = Math.max(0, Math.min(from, Math.floor((shown.length - 1) / page) * page));
    const part = shown.slice(from, from + page);
    body.replaceChildren(...part.map((row) => make("tr", {}, make("td", {}, row.name), make("td", {}, row.state),
      make("td", { className: "n" }, row.s.toFixed(1)), make("td", { className: "n" }, String(row.attempts)),
      make("td", {}, row.reason))));
    where.textContent = shown.length ? `${from + 1} to ${from + part.length} of ${shown.length}` : "no task";
    back.disabled = from === 0;
    next.disabled = from + page >= shown.length;
    for (const [key, cell] of heads) cell.setAttribute("aria-sort", key !== sorted ? "none" : down ? "descending" : "ascending");
  };
  search.oninput = only.onchange = () => { from = 0; draw(); };
  back.onclick = () => { from -= page; draw(); };
  next.onclick = () => { from += page; draw(); };
  box.append(make("div", { className: "tools" }, search, only, back, next, where),
    make("div", { className: "scroll" }, make("table", {}, make("thead", {}, head), body)));
  draw();
})();
