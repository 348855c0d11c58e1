"use strict";
// Draws every figure over its static image, in the page's colours, and again when those change.
const made = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const PANEL = 220, BESIDE = 75, NARROW = 480; // pixels: the narrowest panel, what its axis takes, a phone
const LETTER = 8, SMALL_LETTER = 6.5; // pixels, of titles and of subtitles

function lines(text, letters) {
  const made = [""];
  for (const word of [text ?? []].flat().join(" ").split(" ")) {
    const last = made[made.length - 1];
    if (last && last.length + word.length >= letters) made.push(word);
    else made[made.length - 1] = last ? last + " " + word : word;
  }
  return made;
}

function titled(title, width) {
  const {text, subtitle} = typeof title === "string" ? {text: title} : title;
  return {text: lines(text, width / LETTER), ...(subtitle && {subtitle: lines(subtitle, width / SMALL_LETTER)})};
}

// A figure takes its width from its place: titles are broken into lines, legends stand below each other on a phone, and
// of panels as many stand beside each other as can be read.
function fitted(written, width) {
  const legends = (key, value) => (key === "legend" && value ? {...value, columns: 1, labelLimit: width - 60} : value);
  const spec = width < NARROW ? JSON.parse(JSON.stringify(written), legends) : written;
  const title = titled(spec.title, width);
  if (!spec.spec) return {...spec, title, width: "container"};
  const columns = Math.max(1, Math.min(spec.columns ?? 1, Math.floor(width / PANEL)));
  return {...spec, title, columns, spec: {...spec.spec, width: Math.floor(width / columns) - BESIDE}};
}

async function draw() {
  for (const [i, spec] of made.specs.entries()) {
    const figure = document.getElementById("figure-" + i);
    const place = figure.querySelector(".live");
    figure.classList.add("drawn");
    try {
      const config = dark.matches ? made.dark : made.light;
      const tooltip = {theme: dark.matches ? "dark" : "light"};
      const options = {actions: false, ast: true, renderer: "svg", config, tooltip};
      await vegaEmbed(place, fitted(spec, place.clientWidth), options);
    } catch (error) {
      figure.classList.remove("drawn");
      console.error(error);
    }
  }
}
let [width, waiting] = [innerWidth, 0];
addEventListener("resize", () => {
  if (innerWidth === width || matchMedia("print").matches) return; // a phone's address bar changes the height alone
  width = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(draw, 200);
});
dark.addEventListener("change", draw);
draw();
