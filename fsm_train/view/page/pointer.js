// The mouse: it puts the cursor where it is pressed, and looks closer. The lines of the cursors stand above the drawings.

import { across } from "./scales.js";

/** Put a line for the cursor of each run where that stands; it is not seen where it stands out of sight. */
export function moveCursorsTo(cursors, view, width) {
  const scale = across(view.range, width);
  for (const cursor of cursors) {
    const index = Number(cursor.dataset.run);
    const position = view.position(index);
    const inside = position >= view.range[0] && position <= view.range[1];
    cursor.style.transform = `translateX(${scale.x(position)}px)`;
    cursor.hidden = !inside;
    cursor.classList.toggle("active", index === view.active);
  }
}

/** Give the horizontal place of the pointer while it is pressed. */
export function drag(element, act) {
  const tell = (event) => {
    const box = element.getBoundingClientRect();
    act(event.clientX - box.left, Math.floor(box.width));
  };
  let waiting = null;
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    tell(event);
  });
  element.addEventListener("pointermove", (event) => {
    if (!element.hasPointerCapture(event.pointerId)) return;
    if (!waiting) requestAnimationFrame(() => {
      tell(waiting);
      waiting = null;
    });
    waiting = event;
  });
}

export function zoomByWheel(element, view) {
  element.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey) return;
      event.preventDefault();
      const box = element.getBoundingClientRect();
      view.zoom(2 ** (event.deltaY / 200), across(view.range, Math.floor(box.width)).position(event.clientX - box.left));
    },
    { passive: false },
  );
}
