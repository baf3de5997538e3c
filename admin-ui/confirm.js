const dialog = document.getElementById('confirm');
const [text, yes, no] = ['confirm-text', 'confirm-yes', 'confirm-no'].map((id) => document.getElementById(id));

/** Asks before something that cannot be taken back. @returns {Promise<boolean>} */
export function confirmed(question, action) {
  text.textContent = question;
  yes.textContent = action;
  dialog.returnValue = '';
  dialog.showModal();
  no.focus();
  return new Promise((resolve) => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }));
}

yes.addEventListener('click', () => dialog.close('yes'));
no.addEventListener('click', () => dialog.close());
