"use strict";
// Asks for the page again and puts the parts that have changed into their places. What is open stays open, and
// the keyboard's focus stays where it is.
(() => {
  const EVERY = 10000;
  const away = document.getElementById("away");
  let asking = false;

  const put = (old, fresh) => {
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    for (const details of old.querySelectorAll("details[open]")) {
      fresh.querySelector("#" + CSS.escape(details.id))?.setAttribute("open", "");
    }
    old.replaceWith(document.adoptNode(fresh));
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  };

  const refresh = async () => {
    if (document.hidden || asking) return;
    asking = true;
    try {
      const answer = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(EVERY) });
      if (!answer.ok) throw new Error("the gateway answers " + answer.status);
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.title = next.title;
      for (const old of document.querySelectorAll("[data-live]")) {
        const fresh = next.getElementById(old.id);
        if (fresh && !fresh.isEqualNode(old)) put(old, fresh);
      }
      away.hidden = true;
    } catch {
      if (away.hidden) {
        away.textContent = "No answer since " + new Date().toISOString().slice(11, 19) + " UTC: what you see is old";
        away.hidden = false;
      }
    } finally {
      asking = false;
    }
  };

  setInterval(refresh, EVERY);
  document.addEventListener("visibilitychange", refresh);
})();
