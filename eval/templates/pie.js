// The cases of the page: filtered, sorted and drawn a page at a time. Texts go in as text only, never as markup.
"use strict";
(() => {
  const CASES_A_PAGE = 12;
  const data = JSON.parse(document.getElementById("cases").textContent);
  const byId = (id) => document.getElementById(id);
  const template = byId("case");
  const choices = Object.fromEntries(["editor", "type", "form", "sort", "order"].map((name) => [name, byId(name)]));
  let page = 0;
  let shown = [];

  const picture = (number) => byId("picture-" + number).textContent;
  const column = (measure) => data.columns.findIndex((found) => found.measure === measure);
  const valueOf = (edit, index) => (edit.values[choices.form.value] || [])[index] ?? null;
  const words = (value, index) =>
    value === null ? "–" : (value * data.columns[index].scale).toFixed(data.columns[index].digits);

  // The edits that count for a case: of the chosen editor, or of all that are no references.
  const chosen = (found) => {
    const editor = choices.editor.value;
    return found.edits.filter((edit) => (editor === "" ? !data.rows[edit.row].reference : edit.row === Number(editor)));
  };

  // What a case is sorted by, less being worse; null where nothing is known, which comes last.
  const score = (found) => {
    const edits = chosen(found);
    const index = column(choices.sort.value);
    const values = edits
      .map((edit) => (choices.sort.value === "failures" ? edit.rank : valueOf(edit, index)))
      .filter((value) => value !== null);
    if (!values.length) return null;
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return choices.sort.value === "failures" || data.columns[index].higher ? mean : -mean;
  };

  const select = () => {
    const type = choices.type.value;
    const bySort = choices.sort.value !== "key";
    choices.order.disabled = !bySort || choices.sort.value === "failures";
    shown = data.cases.filter((found) => (type === "" || found.type === type) && chosen(found).length);
    if (bySort) {
      const sign = choices.sort.value !== "failures" && choices.order.value === "best" ? -1 : 1;
      const scores = new Map(shown.map((found) => [found, score(found)]));
      shown.sort((a, b) => {
        const [first, second] = [scores.get(a), scores.get(b)];
        if (first === null || second === null) return (first === null) - (second === null);
        return sign * (first - second);
      });
    }
    page = 0;
    draw();
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(shown.length / CASES_A_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    byId("list").replaceChildren(...shown.slice(page * CASES_A_PAGE, (page + 1) * CASES_A_PAGE).map(card));
    byId("found").textContent = `${shown.length} of ${data.cases.length} cases`;
    for (const nav of document.querySelectorAll(".pages")) {
      nav.hidden = pages === 1;
      nav.querySelector(".at").textContent = `page ${page + 1} of ${pages}`;
      for (const button of nav.querySelectorAll("button")) {
        button.disabled = button.dataset.step < 0 ? page === 0 : page === pages - 1;
      }
    }
  };

  const card = (found) => {
    const node = template.content.firstElementChild.cloneNode(true);
    const part = (name) => node.querySelector(name);
    part("h3").textContent = found.key;
    part(".type").textContent = data.types[found.type] || found.type;
    const texts = [
      ["source", found.source_prompt],
      ["target", found.target_prompt],
      ["instruction", found.instruction],
      ["words", found.blended ? found.blended.join(" → ") : ""],
    ];
    for (const [name, text] of texts) {
      if (text) part(".texts").append(element("dt", name), element("dd", text));
    }
    const several = choices.editor.value === "";
    part(".rows").hidden = !several;
    const buttons = found.edits.map((edit) => thumbButton(found, edit));
    const show = (edit) => {
      for (const [number, button] of buttons.entries()) {
        button.firstElementChild.setAttribute("aria-pressed", String(found.edits[number] === edit));
      }
      activate(node, found, edit);
    };
    for (const [number, button] of buttons.entries()) {
      button.firstElementChild.addEventListener("click", () => show(found.edits[number]));
    }
    part(".rows .thumbs").append(...buttons);
    // With several editors the first is shown; where failures come first, the one that failed most.
    const edits = chosen(found);
    const worst = (best, edit) => (edit.rank < best.rank ? edit : best);
    show(choices.sort.value === "failures" ? edits.reduce(worst) : edits[0]);
    return node;
  };

  const thumbButton = (found, edit) => {
    const row = data.rows[edit.row];
    const item = document.createElement("li");
    item.classList.toggle("reference", row.reference);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "pick";
    const [psnr, clip] = ["psnr", "clip_whole"].map((name) => words(valueOf(edit, column(name)), column(name)));
    button.append(
      image(edit.image, `edit by ${row.title}`),
      element("span", row.title, "name"),
      element("span", `${psnr} dB`, "note"),
      element("span", `CLIP ${clip}`, "note"),
    );
    item.append(button);
    return item;
  };

  // Shows one edit of a case: in the slider, in the small pictures and in the table of values.
  const activate = (node, found, edit) => {
    const row = data.rows[edit.row];
    const part = (name) => node.querySelector(name);
    const badge = part(".failed");
    badge.hidden = !(data.identity && !row.reference && edit.gain !== null && edit.gain <= 0);
    part(".before").src = picture(found.source);
    part(".before").alt = `source of case ${found.key}`;
    part(".after").src = picture(edit.image);
    part(".after").alt = `edit by ${row.title}`;
    part("input").setAttribute("aria-label", `Case ${found.key}: source on the left, edit by ${row.title} on the right`);
    part(".right").textContent = row.title;
    const pictures = [
      ["source", found.source],
      ["reconstruction", edit.reconstruction],
      ["edit", edit.image],
      ["true edit", found.truth],
      ["annotated mask", found.mask],
      ["editor's mask", edit.mask],
    ];
    part(".thumbs.one").replaceChildren(
      ...pictures.filter(([, number]) => number !== null).map(([name, number]) => {
        const figure = document.createElement("figure");
        figure.append(opened(number, name, found), element("figcaption", name));
        return figure;
      }),
    );
    part(".one-title").textContent = `${row.title}: prompts ${row.prompts}, mask ${row.mask}`;
    const forms = data.forms.filter((form) => form in edit.values);
    part(".values thead tr").replaceChildren(element("th", ""), ...forms.map((form) => element("th", form)));
    part(".values tbody").replaceChildren(
      ...data.columns.map((found, index) => {
        const line = document.createElement("tr");
        const title = element("th", `${found.title}${found.unit ? " " + found.unit : ""}`);
        title.scope = "row";
        line.append(title, ...forms.map((form) => element("td", words(edit.values[form][index], index))));
        return line;
      }),
    );
  };

  // A picture that opens beside the others of its case; a mask stands on a checked ground.
  const opened = (number, name, found) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = name.endsWith("mask") ? "open checked" : "open";
    button.dataset.name = name;
    button.dataset.words = `${name} of case ${found.key}`;
    button.append(image(number, button.dataset.words));
    return button;
  };

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  const image = (number, alt) => {
    const made = document.createElement("img");
    made.alt = alt;
    made.src = picture(number);
    return made;
  };

  for (const choice of Object.values(choices)) choice.addEventListener("change", select);
  for (const button of document.querySelectorAll(".pages button")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.step);
      draw();
      byId("controls").parentElement.querySelector(".top").scrollIntoView();
    });
  }

  // One of the tables by type at a time.
  const kinds = ["type-measure", "type-form"].map(byId);
  const showTypes = () => {
    for (const table of document.querySelectorAll(".by-type")) {
      table.hidden = table.dataset.measure !== kinds[0].value || table.dataset.form !== kinds[1].value;
    }
  };
  if (kinds[0]) {
    kinds.forEach((kind) => kind.addEventListener("change", showTypes));
    showTypes();
  }
  select();
})();
