// Sends a mail for each notification that no device has read in time: a consumer group of the stream tidings:unread.
//
//   npm install redis && REDIS_URL=redis://127.0.0.1:6379 node mail.mjs
import { createClient } from 'redis';

const STREAM = 'tidings:unread';
const GROUP = 'mail';
// Each process its own.
const CONSUMER = process.env.HOSTNAME ?? 'mailer-1';

// Replace by your mail service, such as nodemailer's `transport.sendMail`.
async function sendMail({ to, subject, text, messageId }) {
  console.log(JSON.stringify({ to, subject, text, messageId }));
}

function mail({ user, id, event, data }) {
  const { text } = Object(JSON.parse(data));
  return {
    to: `user-${user}@example.com`,
    subject: `You have an unread notification: ${event}`,
    text: typeof text === 'string' ? text : data,
    // The same if the entry is handled again, after a crash between the mail and its acknowledgement.
    messageId: `<${id}@example.com>`,
  };
}

/** Whether it is this mail that cannot be sent, now or later: no JSON, or its recipient or content is refused (as by nodemailer). */
function isFinal(error) {
  const isRefused = ['EENVELOPE', 'EMESSAGE'].includes(error.code) && error.responseCode >= 500;
  return isRefused || error instanceof SyntaxError;
}

async function handle({ id: entry, message }) {
  try {
    await sendMail(mail(message));
  } catch (error) {
    console.error(`${entry}: ${error.message}`);
    if (!isFinal(error)) return; // It stays pending, and is taken over in a minute.
  }
  await redis.xAck(STREAM, GROUP, entry);
}

const redis = createClient({ url: process.env.REDIS_URL ?? 'redis://127.0.0.1:6379' });
redis.on('error', (error) => console.error(error.message));
await redis.connect();
try {
  await redis.xGroupCreate(STREAM, GROUP, '0', { MKSTREAM: true });
} catch (error) {
  if (!error.message.startsWith('BUSYGROUP')) throw error;
}

let place = '0-0';
for (;;) {
  try {
    // What another consumer, or this one, took a minute ago and did not acknowledge.
    const { nextId, messages } = await redis.xAutoClaim(STREAM, GROUP, CONSUMER, 60_000, place, { COUNT: 10 });
    place = nextId;
    for (const entry of messages.filter(Boolean)) await handle(entry);
    // It waits only once there is no more to take over.
    const wait = place === '0-0' ? { BLOCK: 5_000 } : {};
    const read = await redis.xReadGroup(GROUP, CONSUMER, { key: STREAM, id: '>' }, { COUNT: 10, ...wait });
    for (const entry of read?.[0].messages ?? []) await handle(entry);
  } catch (error) {
    console.error(error.message);
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}
