"use strict";
{
  const tip = document.getElementById("tip");
  const show = (mark) => {
    const box = mark.getBoundingClientRect();
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const half = tip.offsetWidth / 2 + 8;
    const middle = Math.min(Math.max(box.left + box.width / 2, half), document.documentElement.clientWidth - half);
    const above = box.top > tip.offsetHeight + 16;
    tip.style.left = `${middle + scrollX - tip.offsetWidth / 2}px`;
    tip.style.top = `${scrollY + (above ? box.top - tip.offsetHeight - 8 : box.bottom + 8)}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const mark of document.querySelectorAll("[data-tip]")) {
    for (const name of ["pointerenter", "focus", "click"]) mark.addEventListener(name, () => show(mark));
    for (const name of ["pointerleave", "blur"]) mark.addEventListener(name, hide);
  }

  const strip = document.querySelector(".strip");
  const layers = strip ? [...strip.children] : [];
  const pick = (layer, focus) => {
    for (const each of layers) {
      const chosen = each === layer;
      each.setAttribute("aria-selected", chosen);
      each.tabIndex = chosen ? 0 : -1;
      document.getElementById(each.getAttribute("aria-controls")).hidden = !chosen;
    }
    if (focus) layer.focus();
  };
  let held = null;
  layers.forEach((layer, index) => {
    layer.addEventListener("click", () => { held = layer; pick(layer); });
    layer.addEventListener("pointerenter", () => pick(layer));
    layer.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -layers.length, End: layers.length }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      held = layers[Math.min(Math.max(index + step, 0), layers.length - 1)];
      pick(held, true);
    });
  });
  if (strip) {
    const height = (layer) => parseFloat(layer.querySelector(".before").style.height) || 0;
    held = layers.reduce((best, each) => (height(each) > height(best) ? each : best));
    pick(held);
    strip.addEventListener("pointerleave", () => pick(held));
  }

  const folded = document.querySelectorAll("details");
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...folded].filter((each) => !each.open && !each.closest("article"));
    for (const each of closed) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of closed) each.open = false; });
}
