"use strict";
// Puts the images of one prompt over each other, with a divide that moves. Without it, the page shows them side by side.
(() => {
  const LEVELS = [0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16];
  const LARGEST_FIT = 4; // Small images are enlarged by a whole number, so that all their pixels stay alike.
  const BLINK_MS = 600; // Less than three changes a second, as WCAG 2.3.1 asks.
  const KEY_STEP = 0.02;

  const compare = document.querySelector(".compare");
  const articles = [...document.querySelectorAll("article")];
  if (!compare || !articles.length) return;
  const part = (selector) => compare.querySelector(selector);
  const button = (name) => part(`[data-do="${name}"]`);
  const [stage, view, canvas, slider, divide] = [".stage", ".view", ".canvas", ".slider", ".divide"].map(part);
  const [under, over, leftBadge, rightBadge] = [".under", ".over", ".badge.left", ".badge.right"].map(part);
  const links = [...document.querySelectorAll(".list a")];
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  let index = -1;
  let divided = 0.5; // The part of the visible width that is left of the divide.
  let zoom = 0; // Pixels of the screen per pixel of the image; 0 fits the image into the page.
  let scale = 1; // The same, as it is now.
  let layers = []; // Both layers, each with the size of its image.
  let alone = ""; // "left" or "right" while only one image is shown.
  let withOther = false; // Whether the right image is that of the other seed.
  let timer = 0;

  const imageOf = (model) => articles[index].querySelector(`figure[data-model="${model}"] img`);
  const pans = () => canvas.offsetWidth > view.clientWidth + 1 || canvas.offsetHeight > view.clientHeight + 1;
  const within = (value, least, most) => Math.min(Math.max(value, least), most);

  function show(wanted) {
    const next = within(wanted, 0, articles.length - 1);
    if (next === index) return;
    const focused = document.activeElement;
    articles.forEach((article, number) => article.classList.toggle("shown", number === next));
    links.forEach((link, number) => {
      if (number === next) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    index = next;
    const complete = Boolean(imageOf("original") && imageOf("quantized"));
    articles[index].classList.toggle("compared", complete);
    button("previous").disabled = index === 0;
    button("next").disabled = index === articles.length - 1;
    part(".count").textContent = `${index + 1} of ${articles.length}`;
    stage.hidden = slider.hidden = !complete;
    for (const name of ["blink", "smaller", "larger", "native", "fit", "full"]) button(name).disabled = !complete;
    button("other").disabled = !complete || !imageOf("baseline");
    articles[index].querySelector(".pictures").prepend(compare);
    compare.hidden = false;
    if (!complete) blink(false);
    else setImages();
    if (compare.contains(focused)) focused.focus({ preventScroll: true });
    reveal(links[index]);
  }

  // The link's own scrollIntoView would scroll the page, too, and the Tab key would go on from the link.
  function reveal(link) {
    const item = link.getBoundingClientRect();
    for (const list of [link.closest(".list"), link.closest("ol")]) {
      const box = list.getBoundingClientRect();
      list.scrollLeft += Math.min(item.left - box.left, 0) + Math.max(item.right - box.right, 0);
      list.scrollTop += Math.min(item.top - box.top, 0) + Math.max(item.bottom - box.bottom, 0);
    }
  }

  function setImages() {
    const other = withOther ? imageOf("baseline") : null;
    const images = [imageOf("original"), other || imageOf("quantized")];
    button("other").setAttribute("aria-pressed", String(Boolean(other)));
    layers = [under, over].map((layer, number) => {
      const image = images[number];
      layer.src = image.src;
      layer.alt = image.alt;
      return { layer, width: Number(image.getAttribute("width")), height: Number(image.getAttribute("height")) };
    });
    [leftBadge.textContent, rightBadge.textContent] = images.map((image) => image.alt);
    layOut();
  }

  function layOut() {
    if (stage.hidden) return;
    const width = Math.max(...layers.map((each) => each.width));
    const height = Math.max(...layers.map((each) => each.height));
    const [widest, highest] = [compare.clientWidth, innerHeight * 0.8];
    const most = Math.min(widest / width, highest / height);
    scale = zoom || (most < 1 ? most : Math.min(Math.floor(most), LARGEST_FIT));
    for (const each of layers) {
      each.layer.style.width = `${each.width * scale}px`;
      each.layer.style.height = `${each.height * scale}px`;
    }
    canvas.style.width = `${width * scale}px`;
    canvas.style.height = `${height * scale}px`;
    stage.style.width = slider.style.width = `${Math.min(widest, width * scale)}px`;
    view.style.height = `${Math.min(highest, height * scale)}px`;
    stage.classList.toggle("large", scale > 1);
    stage.classList.toggle("pans", pans());
    part(".level").textContent = `${Math.round(scale * 100)} %`;
    draw();
  }

  function draw() {
    const width = view.clientWidth;
    const cut = alone ? (alone === "left" ? canvas.offsetWidth : 0) : view.scrollLeft + divided * width;
    over.style.clipPath = `inset(0 0 0 ${cut}px)`;
    divide.style.left = `${divided * width}px`;
    divide.hidden = Boolean(alone);
    leftBadge.hidden = alone === "right";
    rightBadge.hidden = alone === "left";
    slider.value = String(Math.round(divided * 100));
    slider.setAttribute("aria-valuetext", `${slider.value} % ${leftBadge.textContent}, the rest ${rightBadge.textContent}`);
  }

  function divideAt(value) {
    divided = within(value, 0, 1);
    blink(false);
    draw();
  }

  function zoomTo(value, x = view.clientWidth / 2, y = view.clientHeight / 2) {
    const [left, top] = [(view.scrollLeft + x) / scale, (view.scrollTop + y) / scale];
    zoom = value;
    layOut();
    view.scrollTo(left * scale - x, top * scale - y);
    draw();
  }

  function step(larger, x, y) {
    const next = larger ? LEVELS.find((level) => level > scale + 0.001) : LEVELS.findLast((level) => level < scale - 0.001);
    if (next) zoomTo(next, x, y);
  }

  function flip() {
    alone = alone === "right" ? "left" : "right";
    draw();
  }

  function blink(on) {
    clearInterval(timer);
    timer = 0;
    if (on) {
      flip();
      // Readers who asked for less motion change the images by hand.
      if (!calm.matches) timer = setInterval(flip, BLINK_MS);
    } else alone = "";
    button("blink").setAttribute("aria-pressed", String(on));
    draw();
  }

  function go(number) {
    show(number);
    history.replaceState(null, "", `#${articles[index].id}`);
    const top = articles[index].getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) articles[index].scrollIntoView();
  }

  const actions = {
    previous: () => go(index - 1),
    next: () => go(index + 1),
    blink: () => blink(calm.matches || !timer),
    other: () => {
      withOther = !withOther;
      setImages();
    },
    smaller: () => step(false),
    larger: () => step(true),
    native: () => zoomTo(1),
    fit: () => zoomTo(0),
    full: () => (document.fullscreenElement ? document.exitFullscreen() : compare.requestFullscreen()),
    left: () => divideAt(divided - KEY_STEP),
    right: () => divideAt(divided + KEY_STEP),
    stop: () => blink(false),
    keys: () => {
      part(".keys").open = !part(".keys").open;
    },
  };
  const KEYS = new Map(Object.entries({
    j: "next", k: "previous", b: "blink", s: "other", "+": "larger", "=": "larger", "-": "smaller", 0: "native", f: "fit",
    "?": "keys", ArrowLeft: "left", ArrowRight: "right", Escape: "stop",
  }));

  compare.addEventListener("click", (event) => {
    const pressed = event.target.closest("button");
    if (pressed) actions[pressed.dataset.do]();
  });
  slider.addEventListener("input", () => divideAt(slider.value / 100));
  document.addEventListener("keydown", (event) => {
    const action = KEYS.get(event.key.length === 1 ? event.key.toLowerCase() : event.key);
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    // In these elements, the arrows have a meaning of their own.
    if (event.key.startsWith("Arrow") && event.target.closest("input, .scroll, blockquote, .pans .view")) return;
    const own = button(action);
    if (own ? own.disabled : stage.hidden && action !== "keys") return;
    event.preventDefault();
    actions[action]();
  });

  let dragged = null;
  stage.addEventListener("pointerdown", (event) => {
    const panning = pans() && !divide.contains(event.target);
    // Fingers pan with the browser's own scrolling.
    if (event.button || (panning && event.pointerType === "touch")) return;
    dragged = { panning, x: event.clientX + view.scrollLeft, y: event.clientY + view.scrollTop };
    stage.setPointerCapture(event.pointerId);
    move(event);
  });
  function move(event) {
    if (!dragged) return;
    if (dragged.panning) view.scrollTo(dragged.x - event.clientX, dragged.y - event.clientY);
    else divideAt((event.clientX - stage.getBoundingClientRect().left) / view.clientWidth);
  }
  stage.addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (dragged = null));
  view.addEventListener("scroll", draw);
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    step(event.deltaY < 0, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });

  let pinch = null;
  const spread = ([first, second]) => Math.hypot(first.clientX - second.clientX, first.clientY - second.clientY);
  stage.addEventListener("touchstart", (event) => {
    pinch = event.touches.length === 2 ? { distance: spread(event.touches), scale } : null;
    if (pinch) dragged = null;
  });
  stage.addEventListener("touchmove", (event) => {
    if (!pinch || event.touches.length !== 2) return;
    event.preventDefault();
    const wanted = (pinch.scale * spread(event.touches)) / pinch.distance;
    zoomTo(within(wanted, LEVELS[0], LEVELS.at(-1)));
  }, { passive: false });

  function follow() {
    const found = articles.findIndex((article) => `#${article.id}` === location.hash);
    if (found >= 0) show(found);
    return found >= 0;
  }
  addEventListener("hashchange", follow);
  addEventListener("resize", layOut);
  document.documentElement.classList.add("js");
  if (follow()) articles[index].scrollIntoView();
  else show(0);
})();
