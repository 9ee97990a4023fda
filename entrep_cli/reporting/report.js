"use strict";
(() => {
  const data = document.getElementById("map-data");
  if (!data) return;
  const points = JSON.parse(data.textContent);
  const box = document.querySelector(".map-box");
  const drawing = box.querySelector("svg.chart");
  const ring = drawing.querySelector(".ring");
  const tip = box.querySelector(".tip");
  const thumb = tip.querySelector(".thumb");
  const words = tip.querySelector(".words");
  const view = drawing.viewBox.baseVal;
  let shown = -1;

  function show(i) {
    shown = i;
    ring.setAttribute("cx", points.x[i]);
    ring.setAttribute("cy", points.y[i]);
    words.textContent = points.names[i] + "\n" + points.classNames[points.classes[i]];
    const k = points.step && i % points.step === 0 ? i / points.step : -1;
    thumb.hidden = k < 0;
    if (k >= 0) {
      const zoom = 2;
      thumb.style.backgroundSize = points.columns * points.side * zoom + "px auto";
      thumb.style.backgroundPosition =
        -(k % points.columns) * points.side * zoom + "px " + -Math.floor(k / points.columns) * points.side * zoom + "px";
    }
    tip.hidden = false;
    const scale = drawing.clientWidth / view.width;
    const x = points.x[i] * scale, y = points.y[i] * scale;
    const left = x + 16 + tip.offsetWidth > box.clientWidth ? x - 16 - tip.offsetWidth : x + 16;
    const top = y + 16 + tip.offsetHeight > box.clientHeight ? y - 16 - tip.offsetHeight : y + 16;
    tip.style.left = Math.max(0, Math.min(left, box.clientWidth - tip.offsetWidth)) + "px";
    tip.style.top = Math.max(0, top) + "px";
  }

  function hide() {
    tip.hidden = true;
    ring.setAttribute("cx", -99);
    shown = -1;
  }

  function nearest(x, y, accept) {
    let best = -1, least = Infinity;
    for (let i = 0; i < points.x.length; i++) {
      const dx = points.x[i] - x, dy = points.y[i] - y;
      const far = dx * dx + dy * dy;
      if (far < least && (!accept || accept(dx, dy, i))) { best = i; least = far; }
    }
    return [best, Math.sqrt(least)];
  }

  function follow(event) {
    const frame = drawing.getBoundingClientRect();
    const scale = frame.width / view.width;
    const [i, far] = nearest((event.clientX - frame.left) / scale, (event.clientY - frame.top) / scale);
    if (far * scale < 22) { if (i !== shown) show(i); } else if (document.activeElement !== box) hide();
  }
  drawing.addEventListener("pointermove", follow);
  drawing.addEventListener("pointerdown", follow);
  drawing.addEventListener("pointerleave", () => { if (document.activeElement !== box) hide(); });

  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  box.addEventListener("focus", () => { if (shown < 0 && points.x.length) show(nearest(view.width / 2, view.height / 2)[0]); });
  box.addEventListener("blur", hide);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hide(); return; }
    const way = ways[event.key];
    if (!way || !points.x.length) return;
    event.preventDefault();
    const from = shown < 0 ? nearest(view.width / 2, view.height / 2)[0] : shown;
    // Whatever lies within 45 degrees of the arrow; the nearest of those.
    const ahead = (dx, dy, i) => i !== from && dx * way[0] + dy * way[1] >= Math.abs(dx * way[1] + dy * way[0]) && (dx || dy);
    const [next] = nearest(points.x[from], points.y[from], ahead);
    show(next < 0 ? from : next);
  });
})();
