// What scrolls sideways can be scrolled with the keyboard, too.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("article pre, article .table-wrapper, article div.math, article .output"))
    if (box.scrollWidth > box.clientWidth) { box.tabIndex = 0; box.setAttribute("role", "region"); box.setAttribute("aria-label", "scrolls sideways"); }
});
