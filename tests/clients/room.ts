// Opens a room, loses the connection there, plays with a friend, and prints what it saw. tests/test_clients.py runs it.
//   node room.ts URL
import { Trivia, type Play } from "../../clients/trivia.ts";

async function play(name: string, fields: { code?: string } = {}): Promise<Play> {
  const trivia = new Trivia(process.argv[2]!, { timeoutMs: 60_000 });
  await trivia.register({ username: name, email: `${name}@example.org`, password: "correct horse" });
  const made = trivia.play("friends", fields);
  made.on("change", (game) => {
    if (game.phase === "question" && game.choice === null) made.answer(0);
  });
  return made;
}

/** Waits until a change makes something true. */
function until(one: Play, isTrue: () => unknown): Promise<void> {
  return new Promise((done) => {
    const look = () => isTrue() && done();
    one.on("change", look);
    look();
  });
}

const tag = Math.random().toString(36).slice(2, 10);
const host = await play(`host${tag}`);
await until(host, () => host.room);
const code = host.room!.code;

host["socket"]!.close();
await until(host, () => host.link.state !== "online");
await until(host, () => host.link.state === "online" && host.room?.connected.length === 1);

const friend = await play(`friend${tag}`, { code });
await until(host, () => host.room?.connected.length === 2);
host.begin();
await Promise.all([host, friend].map((one) => until(one, () => one.game.phase === "end")));

host["socket"]!.close();
await until(host, () => host.link.state !== "online");
await until(host, () => host.link.state === "online" && host.room?.connected.length === 2);
const { room, game } = host;
friend.leave();
await until(friend, () => friend.room === null);
console.log(JSON.stringify({ same: room?.code === code, host: room?.host === `host${tag}`, reason: game.reason }));
host.close();
friend.close();
process.exit();
