// Runs examples, one after another, each as a module of its own: [{ name, code, terms }] from
// standard input. In one process, because loading their libraries takes most of the time. The first
// that fails ends it; its name is the last that was printed.

import { register } from 'node:module'
import { text } from 'node:stream/consumers'

import { openPage } from './page.mjs'

register('./resolving.mjs', import.meta.url)
const examples = JSON.parse(await text(process.stdin))
for (const { name, code, terms } of examples) {
  console.log(name)
  openPage({ url: process.env.RPC_URL, account: process.env.PAYER })
  globalThis.terms = terms
  await import(`data:text/javascript,${encodeURIComponent(`${code}\n// ${name}`)}`)
}
