// Lets modules that are not files import packages: they are looked for from here.

export function resolve(specifier, context, next) {
  const isExample = context.parentURL?.startsWith('data:')
  return next(specifier, isExample ? { ...context, parentURL: import.meta.url } : context)
}
