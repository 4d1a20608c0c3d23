// What all pages can do: read values off charts by touch, mouse and keys, and lay pictures over each other.
"use strict";
(() => {
  // --- charts: the nearest mark's words stand below the drawing -----------------------------------------------------
  for (const chart of document.querySelectorAll(".chart")) {
    const reading = document.createElement("output");
    reading.className = "reading";
    reading.textContent = "Values: touch a point, or use ← and →.";
    chart.querySelector("figcaption").append(reading);
    for (const drawing of chart.querySelectorAll("svg")) {
      const marks = [...drawing.querySelectorAll("title")].map((title) => title.parentElement);
      if (!marks.length) continue;
      let at = -1;
      const read = (number) => {
        marks[at]?.classList.remove("read");
        at = (number + marks.length) % marks.length;
        marks[at].classList.add("read");
        reading.textContent = marks[at].querySelector("title").textContent;
      };
      const nearest = (event) => {
        const distances = marks.map((mark) => {
          const box = mark.getBoundingClientRect();
          return Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        });
        read(distances.indexOf(Math.min(...distances)));
      };
      drawing.setAttribute("tabindex", "0");
      drawing.addEventListener("click", nearest);
      drawing.addEventListener("pointermove", (event) => event.pointerType === "mouse" && nearest(event));
      drawing.addEventListener("keydown", (event) => {
        const steps = { ArrowRight: at + 1, ArrowLeft: at < 0 ? -1 : at - 1, Home: 0, End: -1 };
        if (!(event.key in steps)) return;
        event.preventDefault();
        read(steps[event.key]);
      });
    }
  }

  // --- pictures: small ones keep their pixels, all open beside the others of their row ------------------------------
  const SMALL = 128;
  const keepPixels = (image) => image.classList.toggle("pixelated", image.naturalWidth <= SMALL);
  document.addEventListener("load", (event) => event.target.tagName === "IMG" && keepPixels(event.target), true);
  document.querySelectorAll("img").forEach((image) => image.complete && keepPixels(image));

  document.addEventListener("input", (event) => {
    if (event.target.matches(".compare input")) {
      event.target.parentElement.style.setProperty("--at", event.target.value + "%");
    }
  });

  const rowOf = (button) => {
    const row = button.closest("tr, .row") || button.parentElement;
    const first = (found) => (found.matches(".goes-on") ? first(found.previousElementSibling) : found);
    return [...new Set([...first(row).querySelectorAll("button.open"), ...row.querySelectorAll("button.open")])];
  };

  const open = (button) => {
    const dialog = document.getElementById("viewer").content.firstElementChild.cloneNode(true);
    const buttons = rowOf(button);
    const part = (name) => dialog.querySelector(name);
    const show = (side, number) => {
      const { src, alt } = buttons[number].querySelector("img");
      Object.assign(part("img." + side), { src, alt });
      part("select." + side).value = String(number);
    };
    for (const side of ["before", "after"]) {
      const choice = part("select." + side);
      choice.append(...buttons.map((one, number) => new Option(one.dataset.name || one.querySelector("img").alt, number)));
      choice.addEventListener("change", () => show(side, Number(choice.value)));
    }
    show("before", 0);
    show("after", buttons.indexOf(button));
    part(".words").textContent = button.dataset.words || button.querySelector("img").alt;
    if (buttons.indexOf(button) === 0) part(".compare").style.setProperty("--at", "0%");
    part(".ends").hidden = part("input").hidden = part(".line").hidden = buttons.length === 1;
    part("button.close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (button) open(button);
  });
})();
