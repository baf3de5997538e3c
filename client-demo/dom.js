/**
 * Makes an element. Text only ever becomes text, never markup: what is shown here comes from anybody.
 * @param {string} tag with classes: `p.hint.small`
 * @param {Record<string, unknown>} [props] attributes; `on…` are listeners; null and false leave one out
 * @param {...(Node | string | null)} children
 */
export function el(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split('.');
  const node = document.createElement(name);
  if (classes.length > 0) node.className = classes.join(' ');
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A command to run elsewhere, with a button that copies it. */
export function command(text) {
  const button = el('button.copy', { type: 'button', 'aria-label': `Copy: ${text}` }, 'Copy');
  button.addEventListener('click', async () => {
    button.textContent = (await copied(text)) ? 'Copied' : 'Press Ctrl C';
    setTimeout(() => (button.textContent = 'Copy'), 2_000);
  });
  const code = el('code', {}, text);
  async function copied(what) {
    try {
      await navigator.clipboard.writeText(what);
      return true;
    } catch {
      getSelection().selectAllChildren(code); // No permission, or no secure context: selected, it is one key away.
      return false;
    }
  }
  return el('div.command', {}, code, button);
}

/** One word of a shell command, whatever is in it. */
export function shellWord(text) {
  return /^[\w.:@/-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });

export function time(date) {
  return el('time', { datetime: date.toISOString() }, clock.format(date));
}
