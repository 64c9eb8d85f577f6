"use strict";

/** Where the page gets its token from, and where it keeps it: in memory, and in this tab's storage if that is wanted. */
const tokens = (() => {
  const KEPT = "forward-sse.token";

  return {
    /** A token out of what somebody pasted: with its scheme, in quotes, broken over lines. Empty where it is none. */
    read(given) {
      const bare = given
        .trim()
        .replace(/^(authorization:\s*)?bearer\s+/i, "")
        .replace(/^["']|["']$/g, "")
        .replace(/\s+/g, "");
      return /^[\x21-\x7e]+$/.test(bare) ? bare : "";
    },

    /** The token of the address's fragment, which no server ever sees; the address bar forgets it at once. */
    takeFromAddress() {
      const match = /^#token=([^&]+)/.exec(location.hash);
      if (!match) return "";
      history.replaceState(null, "", location.pathname + location.search);
      try {
        return decodeURIComponent(match[1]);
      } catch {
        return "";
      }
    },

    /** What this tab keeps; nothing where the browser has no storage for us. */
    kept() {
      try {
        return sessionStorage.getItem(KEPT) ?? "";
      } catch {
        return "";
      }
    },

    /** Keep a token until the tab is closed; the empty one forgets it. */
    keep(token) {
      try {
        if (token === "") sessionStorage.removeItem(KEPT);
        else sessionStorage.setItem(KEPT, token);
      } catch {
        // Then it is kept in memory only.
      }
    },
  };
})();
