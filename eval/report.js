"use strict";
// The list of cases: an index of all of them, and the details of those on the page, parsed when they are shown.
// Data reaches the page as text nodes and attributes only, never as markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const meta = JSON.parse($("meta").textContent);
  const index = []; // [id, label, truth, flags, trust] with label and truth as numbers into meta.names
  for (const block of document.querySelectorAll("script.index")) index.push(...JSON.parse(block.textContent));
  const caseBlocks = document.querySelectorAll("script.cases");
  const pictureBlocks = [...document.querySelectorAll("script.pictures")];
  const PAGE = 40;
  const SHOWN_BARS = 6;

  // One JSON value a line; the lines of a few blocks stay split, the values are parsed one by one.
  const split = new Map();
  const line = (block, i) => {
    if (!split.has(block)) {
      if (split.size >= 48) split.delete(split.keys().next().value);
      split.set(block, block.textContent.split("\n"));
    }
    return JSON.parse(split.get(block)[i]);
  };
  const detail = (ordinal) => line(caseBlocks[Math.floor(ordinal / meta.chunk)], ordinal % meta.chunk);
  const picture = (number) => {
    let block = null;
    for (const b of pictureBlocks) if (Number(b.dataset.first) <= number) block = b;
    return block && line(block, number - Number(block.dataset.first));
  };

  const el = (tag, name, ...children) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.append(...children.filter((c) => c !== null && c !== undefined));
    return node;
  };
  // No measured probability is certain: what would round to 100.0 is shown as above 99.9.
  const percent = (x) => {
    if (x === null || x === undefined) return "–";
    return (x >= 0.9995 ? "> 99.9" : (100 * x).toFixed(1)) + "\u202f%";
  };
  const image = (data, alt) => {
    if (!data) return el("span", "thumb none", "no picture");
    const node = el("img", "thumb");
    node.alt = alt;
    node.src = "data:image/jpeg;base64," + data;
    return node;
  };

  // What is shown is what the address says: #show=wrong&sort=low&q=leaf&page=2
  const read = () => {
    const p = new URLSearchParams(location.hash.slice(1));
    const show = meta.filters.some((f) => f.key === p.get("show")) ? p.get("show") : "all";
    const number = (key) => Math.max(0, Math.floor(Number(p.get(key)) || 0));
    return { show, truth: p.get("truth"), label: p.get("label"), q: p.get("q") || "", page: number("page") || 1,
             sort: ["low", "high"].includes(p.get("sort")) ? p.get("sort") : "run",
             open: p.has("open") ? number("open") : null };
  };
  const address = (state) => {
    const p = new URLSearchParams();
    if (state.show !== "all") p.set("show", state.show);
    for (const key of ["truth", "label"]) if (state[key] !== null) p.set(key, state[key]);
    if (state.sort !== "run") p.set("sort", state.sort);
    if (state.q) p.set("q", state.q);
    if (state.page > 1) p.set("page", state.page);
    if (state.open !== null) p.set("open", state.open);
    return "#" + (p.toString() || "show=all");
  };
  const go = (change) => {
    history.replaceState(null, "", address({ ...read(), ...change }));
    draw();
  };

  const select = (state) => {
    const mask = meta.filters.find((f) => f.key === state.show).mask;
    const number = (name) => { // -1 stands for no answer, -2 for a name that is not there
      if (name === null) return null;
      const at = name === "" ? -1 : meta.names.indexOf(name);
      return at < 0 && name !== "" ? -2 : at;
    };
    const truth = number(state.truth), label = number(state.label), q = state.q.toLowerCase();
    const found = [];
    index.forEach(([id, l, t, flags], i) => {
      if ((flags & mask) === mask && (truth === null || t === truth) && (label === null || l === label) &&
          (!q || id.toLowerCase().includes(q))) found.push(i);
    });
    if (state.sort !== "run") {
      const sign = state.sort === "low" ? 1 : -1; // a case without trust is the least trusted
      const trust = (i) => (index[i][4] === null ? -1 : index[i][4]);
      found.sort((a, b) => sign * (trust(a) - trust(b)) || a - b);
    }
    return found;
  };

  const mostLikely = (probs) => probs.indexOf(Math.max(...probs));
  const labelOf = (look) => look.label ?? (look.probs ? meta.names[mostLikely(look.probs)] : null);
  const bars = (title, probs, kind, truth) => {
    const order = probs.map((p, k) => k), top = mostLikely(probs);
    if (probs.length > SHOWN_BARS) order.sort((a, b) => probs[b] - probs[a]).splice(SHOWN_BARS);
    const box = el("div", "opinion " + kind, el("h4", "", title));
    for (const k of order) {
      const fill = el("span", "fill");
      fill.style.width = 100 * probs[k] + "%";
      const name = el("span", k === top ? "name top" : "name", meta.names[k], meta.names[k] === truth ? el("i", "", " · truth") : null);
      name.title = meta.names[k];
      box.append(el("div", "bar", name, el("span", "value", percent(probs[k])), el("span", "track", fill)));
    }
    return box;
  };
  const meter = (look) => {
    const box = el("div", "meter"), fill = el("span", "fill");
    fill.style.width = 100 * (look.trust ?? 0) + "%";
    box.append(fill);
    if (look.threshold !== null) {
      const tick = el("span", "needed");
      tick.style.left = `calc(${100 * Math.min(1, look.threshold)}% - 1px)`;
      box.append(tick);
    }
    box.setAttribute("aria-hidden", "true");
    return box;
  };
  const DECIDED = { accept: "accept", look_again: "look again", review: "review" };
  const lookSection = (look, truth) => {
    const box = el("section", "");
    box.style.marginBottom = "0";
    box.append(el("h3", "", look.look === 1 ? "First look" : look.look === 2 ? "Second look, with the evidence below" : `Look ${look.look}`));
    const opinions = el("div", "opinions");
    if (look.probs) opinions.append(bars(`belief (${look.fused_by})`, look.probs, "belief", truth));
    const earlier = look.opinions.filter((o) => o.look !== look.look).length;
    for (const o of look.opinions.filter((o) => o.look === look.look)) {
      if (o.probs) {
        const said = bars(o.agent, o.probs, "", truth);
        if (o.reason) said.append(el("p", "reason", `“${o.reason}”`));
        opinions.append(said);
      }
      else opinions.append(el("div", "opinion", el("h4", "", o.agent), el("p", "failed", "✗ " + (o.error || "no answer"))));
    }
    box.append(opinions);
    if (earlier) box.append(el("p", "because", `Decided with the ${earlier} opinion${earlier === 1 ? "" : "s"} of the look before at hand.`));
    if (look.trust !== null) {
      const needed = look.threshold === null ? "no threshold can promise the target risk" : `needed ${look.threshold.toFixed(3)}`;
      if (labelOf(look) !== meta.names[mostLikely(look.probs)]) box.append(el("p", "because", `label of least expected cost: ${look.label}`));
      box.append(meter(look), el("p", "because", `trust ${look.trust.toFixed(3)}, ${needed}`));
    }
    box.append(el("p", "", el("b", "", `Gate: ${DECIDED[look.decision]}. `), look.why));
    return box;
  };
  const inside = (v) => {
    const box = el("div", "inside");
    for (const look of v.looks) box.append(lookSection(look, v.truth));
    if (v.spent) box.append(el("p", "because", `Language models took ${v.spent}.`));
    if (v.evidence.length) {
      box.append(el("h3", "", "Most similar labelled images"));
      box.append(el("p", "fine key", "= bears the label of the verdict, ≠ bears another"));
      const list = el("ul", "neighbours");
      for (const n of v.evidence) {
        const same = n.label === v.label;
        list.append(el("li", "", image(n.picture === null ? null : picture(n.picture), `neighbour ${n.id}, ${n.label}`),
          el("span", same ? "" : "differs", (same ? "= " : "≠ ") + n.label), el("br"), `cosine ${n.similarity.toFixed(3)}`));
      }
      box.append(list);
    }
    const facts = [];
    if (v.prediction_set.length) facts.push("prediction set: " + v.prediction_set.join(", "));
    if (v.typicality !== null) facts.push(`typicality ${percent(v.typicality)}`);
    if (v.group !== null) facts.push("group " + v.group);
    if (v.path !== null) facts.push(v.path);
    box.append(el("p", "facts", facts.join(" · ")));
    return box;
  };

  const row = (ordinal, state) => {
    const v = detail(ordinal);
    const marks = el("div", "marks", el("span", "action " + v.action, v.action));
    if (v.truth !== null)
      marks.append(v.truth === v.label ? el("span", "isright", "✓ right") : el("span", "iswrong", "✗ truth: " + v.truth));
    if (v.looks.length > 1) {
      const before = labelOf(v.looks[0]);
      marks.append(el("span", "isright", `${v.looks.length} looks` + (before === v.label ? "" : `, first ${before ?? "no answer"}`)));
    }
    const answer = el("div", "answer", v.label === null ? "no answer" : v.label + " ", el("span", "", v.label === null ? "" : percent(v.confidence)));
    const words = el("div", "", answer, el("p", "because", v.why), el("span", "id", v.id));
    const box = el("details", "", el("summary", "", image(v.picture, ""), words, marks));
    const fill = () => box.childElementCount === 1 && box.append(inside(v));
    if (state.open === ordinal) { fill(); box.open = true; }
    box.addEventListener("toggle", () => {
      if (box.open) fill();
      const current = read().open;
      if (box.open || current === ordinal)
        history.replaceState(null, "", address({ ...read(), open: box.open ? ordinal : null }));
    });
    return el("li", "", box);
  };

  const link = (state, change, ...children) => {
    const a = el("a", "", ...children);
    a.href = address({ ...state, open: null, ...change });
    return a;
  };
  const draw = () => {
    const state = read(), found = select(state), last = Math.max(1, Math.ceil(found.length / PAGE));
    const at = state.open === null ? -1 : found.indexOf(state.open);
    state.page = Math.min(at >= 0 ? Math.floor(at / PAGE) + 1 : state.page, last);
    const start = (state.page - 1) * PAGE, end = Math.min(start + PAGE, found.length);

    $("filters").replaceChildren(...meta.filters.map((f) => {
      const a = link(state, { show: f.key, truth: null, label: null, page: 1 }, f.text, el("span", "num", f.n.toLocaleString("en")));
      if (f.key === state.show && state.truth === null && state.label === null) a.setAttribute("aria-current", "true");
      return a;
    }));
    const cell = [state.truth === null ? null : `truth ${state.truth}`, state.label === null ? null : `verdict ${state.label || "none"}`];
    if (state.truth !== null || state.label !== null) {
      const a = link(state, { truth: null, label: null, page: 1 }, cell.filter(Boolean).join(", ") + " ✕");
      a.setAttribute("aria-current", "true");
      a.setAttribute("aria-label", cell.filter(Boolean).join(", ") + ": remove this filter");
      $("filters").append(a);
    }
    $("status").textContent = found.length ? `${(start + 1).toLocaleString("en")} to ${end.toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "No case is like this.";
    $("list").replaceChildren(...found.slice(start, end).map((i) => row(i, state)));
    $("pages").replaceChildren(
      ...(state.page > 1 ? [link(state, { page: state.page - 1 }, "← earlier")] : []),
      ...(last > 1 ? [el("span", "", `page ${state.page} of ${last}`)] : []),
      ...(state.page < last ? [link(state, { page: state.page + 1 }, "later →")] : []));
    if (document.activeElement !== $("search")) $("search").value = state.q;
    $("sort").value = state.sort;
  };

  $("search").addEventListener("input", () => go({ q: $("search").value, page: 1, open: null }));
  $("sort").addEventListener("change", () => go({ sort: $("sort").value, page: 1, open: null }));
  window.addEventListener("hashchange", () => {
    if (location.hash === "#how") return;
    draw();
    $("cases").scrollIntoView();
    $("cases").focus({ preventScroll: true });
  });
  draw();
  if (read().open !== null) document.querySelector("#list details[open]")?.scrollIntoView();
  else if (/^#(show|truth|label|q|page|sort)=/.test(location.hash)) $("cases").scrollIntoView();
})();
