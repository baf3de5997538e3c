/**
 * Creates an element. Text is never parsed as markup: the displayed data is untrusted.
 * @param {string} tag with classes: `p.hint.small`
 * @param {Record<string, unknown>} [props] attributes; `on…` are listeners; null and false omit an attribute
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

/** A command to run in a terminal, with a copy button. */
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
      getSelection().selectAllChildren(code); // Without permission or a secure context: select it for Ctrl C.
      return false;
    }
  }
  return el('div.command', {}, code, button);
}

/** Quotes a text as one word of a shell command. */
export function shellWord(text) {
  return /^[\w.:@/-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
