/** The cursors that a browser stores, one for each address and user: `tidings.js` loads this file if it has a `storageKey`. */

/** The user that a token names. */
function userOf(token) {
  try {
    const bytes = atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'));
    const text = new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)));
    return JSON.parse(text).sub?.toString();
  } catch {
    return undefined;
  }
}

/**
 * @param {{ storage?: Storage, storageKey: string }} options
 * @param {URL} url
 * @param {(cursor: string, other: string) => boolean} isBefore
 * @param {(code: string, message: string, cause: unknown) => void} fail called once; the client continues
 */
export function store({ storage, storageKey }, { origin, pathname }, isBefore, fail) {
  const nameOf = (user) => `${storageKey} ${origin}${pathname} ${user}`; // Without the query, which may contain secrets.
  let hasFailed = false;

  function use(access) {
    try {
      return access(storage ?? globalThis.localStorage);
    } catch (cause) {
      if (!hasFailed) fail('storage_failed', 'cannot store the cursor: the next page will not resume', cause);
      hasFailed = true;
      return undefined;
    }
  }

  return {
    /** A user and the user's cursor, if there is one. The user may be a guess, by the token. */
    find(known, token) {
      const user = known ?? userOf(token);
      const kept = use((place) => user && place.getItem(nameOf(user)));
      return kept && [user, kept];
    },
    /** Stores a cursor, unless another tab is further ahead. */
    keep(user, cursor) {
      use((place) => {
        const kept = place.getItem(nameOf(user));
        if (!kept || !isBefore(cursor, kept)) place.setItem(nameOf(user), cursor);
      });
    },
  };
}
