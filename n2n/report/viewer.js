"use strict";
// Left of the line is before, right of it after. The address says where the line is, in percent of
// what is visible, and which picture is before: #50, #50-frame. The pictures scroll beneath it.
(() => {
  const pane = document.querySelector(".pane");
  const line = document.querySelector(".line");
  const slider = document.querySelector("#position");
  const choices = [...document.querySelectorAll("input[name=before]")];
  const pictures = [...document.querySelectorAll("img.before")];
  let position = 50;

  const draw = () => {
    const x = (pane.clientWidth * position) / 100;
    const end = pane.scrollLeft + x;
    for (const picture of pictures) {
      picture.style.clipPath = `inset(0 ${Math.max(0, picture.width - end)}px 0 0)`;
    }
    line.style.left = `${x}px`;
    slider.value = position;
  };
  const move = (percent) => {
    position = Math.min(100, Math.max(0, percent));
    draw();
  };
  const choose = (name) => {
    for (const choice of choices) choice.checked = choice.value === name;
    for (const picture of pictures) picture.hidden = picture.dataset.name !== name;
  };
  const chosen = () => (choices.find((choice) => choice.checked) || { value: "mean" }).value;
  const read = () => {
    const found = /^#(\d+(?:\.\d+)?)(?:-(mean|frame))?$/.exec(location.hash);
    if (!found) return;
    choose(found[2] || "mean");
    move(Number(found[1]));
  };
  const remember = () => {
    const which = chosen() === "mean" ? "" : `-${chosen()}`;
    try {
      history.replaceState(null, "", `#${Math.round(position * 10) / 10}${which}`);
    } catch {
      // Some browsers forbid it for files: the address then stays as it was.
    }
  };
  const drag = (target, begins) => {
    const follow = (event) => {
      const box = pane.getBoundingClientRect();
      move((100 * (event.clientX - box.left - pane.clientLeft)) / pane.clientWidth);
    };
    target.addEventListener("pointerdown", (event) => {
      if (!begins(event)) return;
      event.preventDefault();
      target.setPointerCapture(event.pointerId);
      follow(event);
      target.addEventListener("pointermove", follow);
      const end = () => {
        target.removeEventListener("pointermove", follow);
        target.removeEventListener("pointerup", end);
        target.removeEventListener("pointercancel", end);
        remember();
      };
      target.addEventListener("pointerup", end);
      target.addEventListener("pointercancel", end);
    });
  };

  drag(line, (event) => event.button === 0);
  // A mouse may take the line anywhere; a finger scrolls the picture, and takes the line's handle.
  // The scrollbars are the pane's own.
  drag(pane, (event) => event.button === 0 && event.pointerType === "mouse" && event.target !== pane);
  slider.addEventListener("input", () => move(Number(slider.value)));
  slider.addEventListener("change", remember);
  for (const choice of choices) {
    choice.addEventListener("change", () => {
      choose(choice.value);
      remember();
    });
  }
  pane.addEventListener("scroll", draw);
  addEventListener("resize", draw);
  addEventListener("hashchange", read);
  document.querySelector(".bar").hidden = false;
  choose("mean");
  draw();
  read();
})();
