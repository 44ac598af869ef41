/** Addresses of package pages: package URLs (purl) without a version, since a checkout has one version of each. */

export function npmUrl(name: string): string {
  return `pkg:npm/${name}`;
}

export function pythonUrl(name: string): string {
  return `pkg:pypi/${normalizePythonName(name)}`;
}

/** PEP 503: one spelling a name. */
export function normalizePythonName(name: string): string {
  return name.toLowerCase().replace(/[-_.]+/g, '-');
}
